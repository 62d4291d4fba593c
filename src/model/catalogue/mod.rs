//! The models that Ponder knows by name.
