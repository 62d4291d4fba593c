//! Grammars over small vocabularies.

mod calls;
mod drawn_calls;
mod hostile;
mod kinds;
mod laws;
mod schemas;
mod support;
mod tags;
mod thoughts;
