//! What the fields of requests mean, without a server.

mod reasoning;
mod structured;
mod tools;
