#!/usr/bin/env bash
# The CUDA kernels, executed on the CPU: README.md beside this file says what each step can see.
#
#   tests/native/run.sh [STEP...]      native  planted bugs, shared pieces, kernels without torch, in every build
#                                      plain   the Python suite on the sim backend
#                                      asan    its tests of values, gradients, strides, masks under Address- and UndefinedBehaviorSanitizer
#                                      tsan    its tests marked tsan, under ThreadSanitizer
#   PYTHON       the interpreter that has torch and torchfastnorm (python3)
#   WORKERS      parallel test processes (auto: one a core)
#   PYTEST_ARGS  further arguments for pytest
set -euo pipefail
cd "$(dirname "$0")/../.."
: "${PYTHON:=python3}" "${WORKERS:=auto}" "${PYTEST_ARGS:=}"
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"

preload() { "$PYTHON" -c "import sys; sys.path.insert(0, 'tests/native'); import native_build
print(' '.join(native_build.sanitizer_libraries('$1')))"; }

native() {
  # shellcheck disable=SC2086
  "$PYTHON" -m pytest -n "$WORKERS" tests/native $PYTEST_ARGS
}
plain() {
  # shellcheck disable=SC2086
  "$PYTHON" -m pytest -n "$WORKERS" --backend sim tests $PYTEST_ARGS
}
asan() {
  "$PYTHON" tests/sim.py asan
  # Python itself leaks by design; torch's threads make the alternate signal stack unsafe.
  # shellcheck disable=SC2086
  TORCHFASTNORM_SIM=asan LD_PRELOAD="$(preload asan)" \
    ASAN_OPTIONS="detect_leaks=0:use_sigaltstack=0:detect_odr_violation=0" UBSAN_OPTIONS="print_stacktrace=1" \
    "$PYTHON" -m pytest -n "$WORKERS" -p no:faulthandler --backend sim \
    tests/test_{layer,rms,batch,group,instance,switch}_norm.py tests/test_batch_{renorm,whitening}.py \
    tests/test_{row,plane}_norm_{strides,gradients}.py tests/test_plane_norm_{mask,running}.py $PYTEST_ARGS
}
tsan() {
  "$PYTHON" tests/sim.py tsan
  # One process, one thread of torch: only the CUDA threads of the kernels are of interest. A report sets the exit
  # status (66) when the process ends.
  # shellcheck disable=SC2086
  TORCHFASTNORM_SIM=tsan LD_PRELOAD="$(preload tsan)" OMP_NUM_THREADS=1 \
    TSAN_OPTIONS="ignore_noninstrumented_modules=1:exitcode=66" \
    "$PYTHON" -m pytest -p no:xdist -p no:faulthandler --backend sim -m tsan \
    -k "not 10000 and not 40001 and not 200000 and not add_layer_norm" tests $PYTEST_ARGS
}

for step in "${@:-native plain asan tsan}"; do
  for name in $step; do
    case "$name" in
      native | plain | asan | tsan) ;;
      *) echo "run.sh: unknown step '$name'" >&2; exit 2 ;;
    esac
    echo "== $name"
    "$name"
  done
done
