//! Grammars over small vocabularies.
