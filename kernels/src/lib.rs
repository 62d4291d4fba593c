//! CPU kernels of Ponder. The only crate of the workspace with `unsafe`.
