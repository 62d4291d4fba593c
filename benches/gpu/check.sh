#!/usr/bin/env bash
# Everything that only a GPU can tell, in one command: no network and no Rust are needed there.
#
#   benches/gpu/build.sh OUT_DIR              where Rust is: three stripped binaries
#   benches/gpu/check.sh OUT_DIR [MODEL.gguf] RESULT.json
#
# Conformance of the operations with their definitions and with the processor, the law of rows bit by bit, kernels against
# references, compute-sanitizer on the small tests, goldens and exactness of a real model (where one is given), then the
# speed of kernels and of engines beside transformers in the same run. Prints one JSON object; the parts' logs lie beside it.
set -uo pipefail
bin=$1
model=""
if [ $# -gt 2 ]; then model=$2; shift; fi
result=$2
here=$(cd "$(dirname "$0")" && pwd)
logs=$(dirname "$result")/gpu-check
mkdir -p "$logs"
export PONDER_TEST_GPU=1 PONDER_HOME="$logs/home"
run() { # NAME SECONDS COMMAND...
  local name=$1 limit=$2 start=$SECONDS
  shift 2
  timeout "$limit" "$@" >"$logs/$name.log" 2>&1
  echo "{\"part\": \"$name\", \"exit\": $?, \"seconds\": $((SECONDS - start))}" | tee -a "$logs/parts.jsonl" >&2
}
: >"$logs/parts.jsonl"
run kernels 120 "$bin/kernels" --test-threads 4 --skip emulator
run warpgroups 90 "$bin/kernels" --ignored --nocapture --test-threads 1 wide_products_on_a_device
run conformance 120 "$bin/tests" --test-threads 4 conformance::implementations::cuda executor::cuda
if command -v compute-sanitizer >/dev/null; then
  run sanitizer 60 compute-sanitizer --error-exitcode 9 "$bin/kernels" --test-threads 1 rows::tests::norm attention::tests::rotate sample::tests::greedy
fi
if [ -n "$model" ]; then
  run exactness 120 python3 "$here/exactness.py" --ponder "$bin/ponder" --model "$model" --goldens "$here/../../tests/goldens" \
    --out "$logs/exactness.json"
fi
run device 60 "$bin/device"
for shape in 0.5b 1.5b 8b; do
  run "ponder-$shape" 60 "$bin/ponder" bench engine --device cuda --random "$shape:bf16" --prefill 2048 --prompt-len 512 --output-len 64 \
    --max-model-len 4096 --batch 1,16,64 --json
  run "transformers-$shape" 90 python3 "$here/transformers_decode.py" --shape "$shape" --batch 1,16,64 --context 512 --prefill 2048
done
for shape in 1.5b 8b; do
  run "ponder-$shape-q4_k_m" 60 "$bin/ponder" bench engine --device cuda --random "$shape:q4_k_m" --prefill 2048 --prompt-len 512 \
    --output-len 64 --max-model-len 4096 --batch 1,16,64 --json
done
python3 "$here/check_result.py" "$logs" >"$result"
cat "$result"
