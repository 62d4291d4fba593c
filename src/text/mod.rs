//! Text in and out of token ids. Knows the model's files, nothing of HTTP or the engine.
