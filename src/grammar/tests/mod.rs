//! Grammars over small vocabularies.

mod calls;
mod hostile;
mod kinds;
mod laws;
mod schemas;
mod support;
mod tags;
mod thoughts;
