mod elementwise;
mod float_product;
mod graph;
mod latent;
mod low_rank;
mod norm;
