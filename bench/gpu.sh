#!/usr/bin/env bash
# Everything that needs a GPU, in ten minutes: build, GPU tests, benchmarks, sanitizers. For a machine with an NVIDIA
# GPU, a CUDA build of torch, nvcc and pytest; jax and compute-sanitizer where they are there.
#
#   bench/gpu.sh                      results, tables and log into bench/results
#   OUT=gpu bench/gpu.sh              into another folder
#   PYTHON=.venv/bin/python MINUTES=20 bench/gpu.sh
#
# Every part has a time limit, and one that fails does not stop the others. $OUT/gpu.log has what they say and at its
# end their exit codes (124: out of time); the script's own is 1 if any part failed. $OUT/gpu.md has the tables.
set -uo pipefail

root=$(cd "$(dirname "$0")/.." && pwd) || exit 1
OUT=$(realpath -m "${OUT:-$root/bench/results}")
PYTHON=${PYTHON:-python3}
MINUTES=${MINUTES:-10}
cd "$root" || exit 1
mkdir -p "$OUT" || exit 1
export PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}"
deadline=$((60 * MINUTES))
codes=()
failed=0

# part NAME SECONDS COMMAND...: runs the command, so long at most, and notes its exit code.
part() {
  local name=$1 limit=$2 begun=$SECONDS code
  shift 2
  if ((deadline - SECONDS < limit)); then limit=$((deadline - SECONDS)); fi
  if ((limit < 5)); then
    echo "== $name: no time left"
    code=124
  else
    echo "== $name, at most $limit s: $*"
    timeout --kill-after=10 "$limit" "$@"
    code=$?
  fi
  codes+=("$name: exit code $code after $((SECONDS - begun)) s")
  if ((code != 0)); then failed=1; fi
}

has_cuda_kernels() {
  "$PYTHON" -c 'import sys; from ade_fast import _ops; sys.exit(not _ops.build_info()["cuda"])' 2>/dev/null
}

build() {
  if has_cuda_kernels; then
    echo "== build: ade_fast is built, with CUDA kernels"
    return
  fi
  local arch
  arch=$("$PYTHON" -c 'import torch; print("%d.%d" % torch.cuda.get_device_capability())')
  part build 300 env ADE_FAST_CUDA=1 TORCH_CUDA_ARCH_LIST="${TORCH_CUDA_ARCH_LIST:-$arch}" \
    "$PYTHON" -m pip install --no-build-isolation --no-deps -e .
}

sanitize() {
  if ! command -v compute-sanitizer >/dev/null; then
    echo "== $1: compute-sanitizer is not on the PATH: skipped"
    return
  fi
  # Without torch's pools: an access beyond a tensor would stay inside of one.
  part "$1" 75 env PYTORCH_NO_CUDA_MEMORY_CACHING=1 compute-sanitizer --tool "$1" --error-exitcode 99 "$PYTHON" -m pytest -q -m cuda \
    tests/test_cuda_device.py tests/test_cuda_layers.py -k "strided_and_misaligned or small_mlp"
}

tables() {
  local name
  for name in mlp-full dynamics-full; do
    printf '<!-- bench:%s -->\n<!-- /bench -->\n\n' "$name"
  done >"$OUT/gpu.md"
  part tables 30 "$PYTHON" bench/report.py --results "$OUT" "$OUT/gpu.md"
}

main() {
  local gpu
  if ! gpu=$("$PYTHON" bench/gpu_name.py); then
    echo "bench/gpu.sh needs a GPU that torch can use (PYTHON=$PYTHON)"
    return 1
  fi
  nvidia-smi || true
  build
  part info 30 "$PYTHON" -m ade_fast.cli info
  part tests 150 "$PYTHON" -m pytest -q -m cuda
  part mlp 180 "$PYTHON" bench/mlp.py --device cuda --peers eager-2t,eager-t1,cuda-graph,jax,ade-auto \
    --out "$OUT/mlp-$gpu.json"
  part dynamics 90 "$PYTHON" bench/dynamics.py --device cuda \
    --peers eager-2t,eager-t1,jax,ade-auto,ade-graph,ade-states --out "$OUT/dynamics-$gpu.json"
  sanitize memcheck
  sanitize racecheck
  # What torch.compile needs for one case alone.
  part mlp-compile 120 "$PYTHON" bench/mlp.py --device cuda --cases mlp-silu-B8192-T10-d2 \
    --peers eager-t1,compile,ade-auto --compile-limit 50 --out "$OUT/mlp-compile-$gpu.json"
  tables
  echo "== exit codes"
  printf '%s\n' "${codes[@]}"
  return "$failed"
}

main 2>&1 | tee "$OUT/gpu.log"
exit "${PIPESTATUS[0]}"
