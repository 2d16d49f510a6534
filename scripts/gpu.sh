#!/usr/bin/env bash
# What can only be done on a GPU: build for it, the suite on it, the benchmark, compute-sanitizer (`make gpu`).
#
#   PYTHON   a Python whose torch sees the GPU        OUT   optional folder: logs and results are copied there
#   FULL=1   measure everything (all shapes, named networks, training steps) in place of suite and sanitizers
#
# Each phase has a time limit and survives the failure of the others; all limits together stay under ten minutes, with
# FULL=1 too. Exit status: 0 when every phase passed, or when there is no GPU (which one clear line says); 1 when a phase
# failed.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
PYTHON=${PYTHON:-python3}
OUT=${OUT:-}
FULL=${FULL:-}
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1

"$PYTHON" -c 'import torch' 2>/dev/null || "$PYTHON" scripts/requirements.py --torch "${TORCH:-torch}" build
device=$("$PYTHON" -c '
import torch
if torch.cuda.is_available():
    major, minor = torch.cuda.get_device_capability()
    print(f"{major}.{minor} {torch.cuda.get_device_name()}")' 2>/dev/null)
if [ -z "$device" ]; then
    echo "make gpu: no GPU here that the torch of $PYTHON can use; nothing was built, run or measured."
    exit 0
fi
export TORCH_CUDA_ARCH_LIST=${TORCH_CUDA_ARCH_LIST:-${device%% *}}
export MAX_JOBS=${MAX_JOBS:-$(nproc)}

logs=build/gpu-logs
rm -rf "$logs"
mkdir -p "$logs"
summary=()
failed=0

# phase NAME SECONDS COMMAND...: runs the command under the limit, keeps its output in a log, notes how it ended.
phase() {
    local name=$1 limit=$2 begin=$SECONDS status
    shift 2
    echo "== $name (at most $limit s)"
    timeout --kill-after=10 "$limit" "$@" >"$logs/$name.log" 2>&1
    status=$?
    tail -n 15 "$logs/$name.log"
    record "$name" "$status" "$((SECONDS - begin))"
}

record() {
    local verdict=passed
    [ "$2" -eq 0 ] || { verdict="FAILED (status $2)"; failed=1; }
    [ "$2" -ne 124 ] || verdict="FAILED (time limit)"
    summary+=("$(printf '%-22s %-22s %4s s' "$1" "$verdict" "$3")")
}

# The four tools side by side: each is slow on one core and leaves the GPU mostly idle.
sanitize() {
    local begin=$SECONDS tool status
    local tools=(memcheck racecheck initcheck synccheck) jobs=()
    command -v compute-sanitizer >/dev/null || PATH="$PATH:${CUDA_HOME:-/usr/local/cuda}/bin"
    echo "== compute-sanitizer: ${tools[*]} (at most $1 s)"
    for tool in "${tools[@]}"; do
        PYTORCH_NO_CUDA_MEMORY_CACHING=1 timeout --kill-after=10 "$1" compute-sanitizer --tool "$tool" \
            --error-exitcode 1 "$PYTHON" scripts/sanitizer_cases.py \
            >"$logs/$tool.log" 2>&1 &
        jobs+=($!)
    done
    for tool in "${!tools[@]}"; do
        wait "${jobs[$tool]}"
        status=$?
        tail -n 3 "$logs/${tools[$tool]}.log"
        record "${tools[$tool]}" "$status" "$((SECONDS - begin))"
    done
}

echo "device: ${device#* } (compute capability ${device%% *})"
{
    nvidia-smi
    "${CUDA_HOME:-/usr/local/cuda}/bin/nvcc" --version
    "$PYTHON" -c 'import torch; print("torch", torch.__version__)'
    git log -1 --oneline
} >"$logs/machine.log" 2>&1

phase requirements 30 "$PYTHON" scripts/requirements.py build test bench
phase build 180 "$PYTHON" scripts/build.py
results=$("$PYTHON" -m bench run --device cuda --print-output-folder 2>/dev/null)
results=${results:-build/gpu-results}

# measure NAME SECONDS COMMAND ARGUMENT...: a command of the benchmark. --force: a GPU that is lent for minutes is measured
# as it is; the results say how noisy it was.
measure() {
    local name=$1 limit=$2 command=$3
    shift 3
    phase "$name" "$limit" "$PYTHON" -m bench "$command" --device cuda --force "$@"
}

if [ "$FULL" = 1 ]; then
    measure benchmark 190 run --suite full --time-limit 165 --output "$results"
    measure networks 50 run --suite models --baseline aten --time-limit 30 --output "$results/models"
    measure train_resnet50 30 train --model resnet50 --mode eager --layout channels_last --rounds 3 --output "$results"
    measure train_llama 30 train --model llama --mode eager --rounds 3 --output "$results"
else
    phase suite 150 "$PYTHON" -m pytest -n 4 --backend cuda -q
    measure benchmark 75 run --suite quick --time-limit 50 --output "$results"
fi
measure roofline 15 roofline --output "$results"
measure latency 20 latency --baseline aten --rounds 5 --output "$results"
phase memory 12 "$PYTHON" -m bench memory --device cuda --output "$results"
phase report 15 "$PYTHON" -m bench report "$results"
[ "$FULL" = 1 ] || sanitize 90

echo
printf '%s\n' "${summary[@]}" | tee "$logs/summary.txt"
if [ -n "$OUT" ]; then
    mkdir -p "$OUT"
    cp "$logs/summary.txt" "$OUT/"
    tar -czf "$OUT/logs.tar.gz" -C build gpu-logs
    [ ! -d "$results" ] || { mkdir -p "$OUT/results" && cp -r "$results"/* "$OUT/results/"; }
    echo "logs and results: $OUT"
fi
exit "$failed"
