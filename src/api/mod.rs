//! The HTTP room.
