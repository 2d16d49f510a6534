#!/usr/bin/env bash
# Builds the extension and runs its suite with the oldest, the tested and the newest torch (`make torch-versions`).
#
#   scripts/torch_versions.sh [VERSION...]          default: 2.11.0 2.13.0 2.14.1
#
# An environment for each version is made under build/torch if it is missing; TORCH_ENVIRONMENTS=FOLDER names another
# place, which may hold environments that exist already, called by their versions. No GPU is needed: where the torch is a
# CUDA build and nvcc is there, the CUDA extension is compiled, linked and imported, and the suite runs on the CPU and on
# the CPU execution of the CUDA kernels.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
versions=("$@")
[ ${#versions[@]} -gt 0 ] || versions=(2.11.0 2.13.0 2.14.1)
folder=${TORCH_ENVIRONMENTS:-$PWD/build/torch}
base_python=${BASE_PYTHON:-python3}
newest=2.14.1
# One architecture is enough to show that the CUDA code builds against a torch; make cuda-check compiles all of them.
export TORCH_CUDA_ARCH_LIST=${TORCH_CUDA_ARCH_LIST:-9.0}

make_environment() {
    local version=$1 environment=$folder/$1 python
    python=$environment/bin/python
    [ ! -x "$python" ] || return 0
    echo "== creating $environment"
    "$base_python" -m venv "$environment"
    if [ "$version" != 2.11.0 ]; then
        "$python" -m pip install --quiet "torch==$version"
        return
    fi
    # torch 2.11's own CUDA packages are another several GB; those of the newest torch serve as well, being of the same
    # CUDA major version, so its folder is linked and pip is told not to fetch any.
    make_environment "$newest"
    "$python" -m pip install --quiet --no-deps "torch==$version"
    "$python" -m pip install --quiet filelock fsspec jinja2 networkx sympy typing-extensions setuptools
    local site
    site=$("$python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
    ln -s "$("$folder/$newest/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/nvidia" "$site/nvidia"
}

declare -A verdicts
failed=0
for version in "${versions[@]}"; do
    make_environment "$version"
    python=$folder/$version/bin/python
    begin=$SECONDS
    echo "== torch $version"
    if make test PYTHON="$python" && PYTHONPATH="$PWD" "$python" scripts/check_build.py; then verdict=passed; else verdict=FAILED failed=1; fi
    verdicts[$version]="$verdict, $((SECONDS - begin)) s"
done
printf '\n'
for version in "${versions[@]}"; do printf 'torch %-8s %s\n' "$version" "${verdicts[$version]}"; done
exit "$failed"
