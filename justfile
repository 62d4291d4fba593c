# Short forms of the commands in CONTRIBUTING.md; `just` lists them.

_list:
    @just --list --unsorted

# Build the release binary
build:
    cargo build --release

# Build, fetch a model, serve
serve model="qwen2.5-coder-0.5b" *flags="":
    cargo run --release -- serve {{model}} {{flags}}

# Run the tests with FILTER in their names, or all
test filter="":
    cargo test --workspace {{filter}}

# Run everything that CI runs
ci:
    .ci/run

# Format the code
fmt:
    cargo fmt --all

# Check format, lints and documents
lint:
    cargo fmt --all --check
    cargo clippy --workspace --all-targets -- -D warnings
    .ci/check-docs

# Build the book, and show it
book:
    mdbook serve --open

# Run the blocks of the README and the tutorials
blocks *pages="":
    python3 tests/docs/run_blocks.py --ponder target/release/ponder {{pages}}

# Write openapi/openapi.json anew
openapi:
    UPDATE_OPENAPI=1 cargo test --test integration openapi

# Measure prefill and decode of a model
bench model="smollm2-135m" *flags="":
    cargo run --release -- bench engine {{model}} {{flags}}

# Measure the kernels
bench-kernels *flags="":
    cargo bench -p ponder-kernels {{flags}}

# Run random engines under random clients, in virtual time
simulate seconds="60":
    cargo run --release -p ponder-simulation -- --seconds {{seconds}}
