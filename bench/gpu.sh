#!/usr/bin/env bash
# Everything that needs a GPU, in nine minutes: build, GPU tests, sanitizers, benchmarks. For a machine with an NVIDIA
# GPU, a CUDA build of torch, nvcc and pytest; jax and compute-sanitizer where they are there.
#
#   bench/gpu.sh                      results, tables and log into bench/results
#   OUT=gpu bench/gpu.sh              into another folder
#   PYTHON=.venv/bin/python MINUTES=20 bench/gpu.sh
#
# Every part has a time limit, and one that fails does not stop the others; the limits and what is set aside for the
# tables add up to nine minutes. $OUT/gpu.log has what the parts say and at its end their exit codes (124: out of time,
# or cases left out for want of it, which the tables name); the script's own is 1 if any part failed. $OUT/gpu.md has
# the tables.
#
# What torch.compile needs for 100 steps fills the rest of the time: one case in nine minutes, all cases of 1000 samples
# and 100 steps from 20 minutes on.
set -uo pipefail

root=$(cd "$(dirname "$0")/.." && pwd) || exit 1
OUT=$(realpath -m "${OUT:-$root/bench/results}")
PYTHON=${PYTHON:-python3}
MINUTES=${MINUTES:-9}
cd "$root" || exit 1
mkdir -p "$OUT" || exit 1
export PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}"
TABLES=30 # seconds set aside
deadline=$((60 * MINUTES - TABLES))
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

# left MOST: the seconds that are left before the tables, up to so many.
left() {
  local rest=$((deadline - SECONDS))
  echo $((rest < $1 ? rest : $1))
}

# Whether there are CUDA kernels, compiled for this GPU.
has_cuda_kernels() {
  "$PYTHON" -c 'import sys; from ade_fast import _ops; build = _ops.build_info()
sys.exit(not build["cuda"] or sys.argv[1] not in build["cuda_archs"])' "$1" 2>/dev/null
}

build() {
  local arch
  arch=$("$PYTHON" -c 'import torch; print("%d.%d" % torch.cuda.get_device_capability())')
  if has_cuda_kernels "$arch"; then
    echo "== build: ade_fast is built, with CUDA kernels for $arch"
    return
  fi
  part build 110 env ADE_FAST_CUDA=1 TORCH_CUDA_ARCH_LIST="$arch" \
    "$PYTHON" -m pip install --no-build-isolation --no-deps -e .
}

sanitize() {
  if ! command -v compute-sanitizer >/dev/null; then
    echo "== $1: compute-sanitizer is not on the PATH: skipped"
    return
  fi
  # Without torch's pools: an access beyond a tensor would stay inside of one.
  part "$1" 45 env PYTORCH_NO_CUDA_MEMORY_CACHING=1 compute-sanitizer --tool "$1" --error-exitcode 99 \
    "$PYTHON" -m pytest -q -m cuda tests/test_cuda_device.py tests/test_cuda_mlp_device.py \
    -k "strided_and_misaligned or every_kernel"
}

tables() {
  local name
  for name in mlp-full dynamics-full; do
    printf '<!-- bench:%s -->\n<!-- /bench -->\n\n' "$name"
  done >"$OUT/gpu.md"
  deadline=$((SECONDS + TABLES))
  part tables "$TABLES" "$PYTHON" bench/report.py --results "$OUT" "$OUT/gpu.md"
}

main() {
  local gpu
  if ! gpu=$("$PYTHON" bench/gpu_name.py); then
    echo "bench/gpu.sh needs a GPU that torch can use (PYTHON=$PYTHON)"
    return 1
  fi
  nvidia-smi || true
  build
  part info 10 "$PYTHON" -m ade_fast.cli info
  part tests 75 "$PYTHON" -m pytest -q -m cuda
  sanitize memcheck
  sanitize racecheck
  local limit cases
  limit=$(left 120)
  part mlp "$limit" "$PYTHON" bench/mlp.py --device cuda --peers eager-2t,eager-t1,cuda-graph,jax,ade-auto \
    --stop-after $((limit - 20)) --out "$OUT/mlp-$gpu.json"
  limit=$(left 25)
  part dynamics "$limit" "$PYTHON" bench/dynamics.py --device cuda --peers eager-t1,ade-auto,ade-states \
    --runs 3 --stop-after $((limit - 10)) --out "$OUT/dynamics-$gpu.json"
  cases='mlp-silu-B1000-T100-d2-medium'
  if ((MINUTES >= 20)); then cases='mlp-*-B1000-T100-d2*'; fi
  limit=$(left 3600)
  part mlp-compile "$limit" "$PYTHON" bench/mlp.py --device cuda --cases "$cases" --passes forward+backward \
    --compile-limit $((limit < 240 ? limit - 40 : 200)) --stop-after $((limit - 60)) --out "$OUT/mlp-compile-$gpu.json"
  tables
  echo "== exit codes"
  printf '%s\n' "${codes[@]}"
  return "$failed"
}

main 2>&1 | tee "$OUT/gpu.log"
exit "${PIPESTATUS[0]}"
