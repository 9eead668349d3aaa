#!/usr/bin/env bash
# GPU tests and benchmarks on a machine without a network.
#
#   tests/gpu/run.sh --wheels DIR --out DIR [--bundle DIR] [--work DIR] [--python PYTHON] [--dry-run]
#
# DIR of wheels holds what the machine lacks, brought along: wheels (whole, or split into NAME.whl.part-aa, -ab, ...),
# pycuda's source archive, and SHA256SUMS of the whole files if there is one. export/README.md lists them.
# Results, in --out: device.txt, gpu-tests.xml, latency.csv, agreement.csv, agreement.md.
# --work keeps what was installed for the next call. --dry-run joins and checks the wheels, and prints the rest.
#
# Exit codes: 0 all is well; 1 a test or a benchmark failed (the others ran); 2 options; 3 the wheels.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
wheels='' out='' bundle="$root/engine/demo/bundle" work='' python=python3 dry=0

usage() {
    sed -n '2,/^set/{/^set/d;s/^# \{0,1\}//;p}' "${BASH_SOURCE[0]}"
    exit "$1"
}

while [ $# -gt 0 ]; do
    case $1 in
        --dry-run) dry=1 ;;
        --help | -h) usage 0 ;;
        --wheels | --out | --bundle | --work | --python)
            [ $# -gt 1 ] || { echo "error: $1 needs a value" >&2; exit 2; }
            printf -v "${1#--}" '%s' "$2"
            shift
            ;;
        *)
            echo "error: unknown option $1" >&2
            usage 2 >&2
            ;;
    esac
    shift
done
[ -n "$wheels" ] && [ -n "$out" ] || { echo 'error: --wheels DIR and --out DIR are needed' >&2; exit 2; }
[ -d "$wheels" ] || { echo "error: $wheels is not a folder" >&2; exit 3; }
wheels=$(cd "$wheels" && pwd)
mkdir -p "$out"
out=$(cd "$out" && pwd)
if [ -z "$work" ]; then
    work=$(mktemp -d)
    trap 'rm -rf "$work"' EXIT
fi
mkdir -p "$work/carried"

# Print a command, and run it unless this is a rehearsal.
step() {
    printf '+'
    printf ' %q' "$@"
    printf '\n'
    [ "$dry" = 1 ] || "$@"
}

# --- what was carried, whole again -----------------------------------------------------------------------------------

shopt -s nullglob
for file in "$wheels"/*.whl "$wheels"/*.tar.gz; do
    ln -sf "$file" "$work/carried/"
done
for first in "$wheels"/*.part-aa; do
    whole=$work/carried/$(basename "${first%.part-aa}")
    cat "${first%aa}"* >"$whole"  # the shell lists them in order
    echo "joined $(basename "$whole") from $(printf '%s\n' "${first%aa}"* | wc -l) parts, $(wc -c <"$whole") bytes"
done
for part in "$wheels"/*.part-*; do
    [ -e "${part%.part-*}.part-aa" ] || { echo "error: $part has no first part, .part-aa" >&2; exit 3; }
done
if [ -e "$wheels/SHA256SUMS" ]; then
    (cd "$work/carried" && sha256sum --check --quiet --strict "$wheels/SHA256SUMS") ||
        { echo 'error: carry the files above again, they are not what was packed' >&2; exit 3; }
fi
for wheel in "$work"/carried/*.whl; do
    "$python" -m zipfile --test "$wheel" >/dev/null ||
        { echo "error: $(basename "$wheel") is not a whole wheel: a part is missing or damaged" >&2; exit 3; }
done
carried=("$work"/carried/*.whl)
sources=("$work"/carried/pycuda-*.tar.gz)

# --- a folder of packages before all others; what the machine has (JetPack's TensorRT, say) stays visible ------------

export PYTHONPATH="$work/site:$root${PYTHONPATH:+:$PYTHONPATH}"
install=("$python" -m pip install --quiet --no-index --no-deps --upgrade --target "$work/site")
if [ ${#carried[@]} -gt 0 ]; then
    step "${install[@]}" "${carried[@]}"
fi
if [ ${#sources[@]} -gt 0 ] && ! "$python" -c 'import pycuda.driver' 2>/dev/null; then
    cuda='' compiler=$(readlink -f "$(command -v nvcc || true)")
    for candidate in "${CUDA_HOME:-}" /usr/local/cuda "${compiler%/bin/nvcc}"; do
        if [ -z "$cuda" ] && [ -e "$candidate/include/cuda.h" ]; then cuda=$candidate; fi
    done
    if [ -z "$cuda" ]; then
        echo 'error: pycuda needs cuda.h of the CUDA toolkit: set CUDA_HOME to the folder above include/cuda.h' >&2
        [ "$dry" = 1 ] || exit 3
    fi
    driver=$({ ldconfig -p || true; } | sed -n 's/.*libcuda\.so\.1 .*=> //p' | head -n 1)
    # The linker looks for libcuda.so, which only development packages bring.
    step mkdir -p "$work/link" "$work/pycuda"
    step ln -sf "${driver:-/usr/lib/libcuda.so.1}" "$work/link/libcuda.so"
    step tar -xzf "${sources[0]}" -C "$work/pycuda" --strip-components=1
    step env -C "$work/pycuda" "$python" configure.py \
        --cuda-root="$cuda" --cudadrv-lib-dir="$work/link" --no-cuda-enable-curand
    # Most of its time goes into templates, for a library that only passes calls on.
    step env CFLAGS="${CFLAGS:-} -O1 -g0" "${install[@]}" --no-build-isolation "$work/pycuda"
fi

# --- plans, tests, benchmarks ----------------------------------------------------------------------------------------

status=0
cd "$root"
if [ "$dry" = 0 ]; then
    { nvidia-smi || cat /etc/nv_tegra_release; } >"$out/device.txt" 2>&1 || true
fi
export GEMMNET_REQUIRE_GPU=1 GEMMNET_PLANS="$work/plans" PYTHONUNBUFFERED=1
step "$python" -m export.build --bundle "$bundle" --cache "$work/plans" || status=1
step "$python" -m pytest tests/gpu -m gpu -v -rA --junitxml "$out/gpu-tests.xml" || status=1
step "$python" -m benchmarks.latency --bundle "$bundle" --plans "$work/plans" --record \
    --tiles 200 --rounds 5 --backends tensorrt --csv "$out/latency.csv" || status=1
step "$python" -m benchmarks.agreement --bundle "$bundle" --plans "$work/plans" \
    --backends tensorrt,onnxruntime --csv "$out/agreement.csv" || status=1
exit $status
