#!/usr/bin/env bash
# What benches/gpu/check.sh runs on a machine without Rust: `benches/gpu/build.sh OUT_DIR`. Nothing of CUDA is needed.
set -euo pipefail
out=$1
cd "$(dirname "$0")/../.."
mkdir -p "$out"
built() { # The executable that a command's JSON messages name last.
  python3 -c '
import json, sys
files = [m["executable"] for m in map(json.loads, sys.stdin) if m.get("executable")]
print(files[-1])'
}
cargo build --release --bin ponder
strip -o "$out/ponder" "$(cargo build --release --bin ponder --message-format json 2>/dev/null | built)"
strip -o "$out/device" "$(cargo build --release -p ponder-kernels-cuda --example device --message-format json | built)"
strip -o "$out/kernels" "$(cargo test -p ponder-kernels-cuda --features emulator --lib --no-run --message-format json | built)"
strip -o "$out/tests" "$(cargo test --lib --no-run --message-format json | built)"
ls -la "$out"
