#!/usr/bin/env bash
# The first day with a GPU, in stages; also on a machine without a network.
#
#   tests/gpu/run.sh --out DIR [--stages a,b,c,d,e,f] [--wheels DIR] [--bundle DIR] [--work DIR] [--python PYTHON]
#                    [--dry-run]
#
# stage  proves                                                       takes         needs
# a      Python reaches the device: driver, pycuda                    seconds       a device, pycuda
# b      streams, capture, memory and teardown, byte by byte;         2 to 5 min    a device, pycuda; a part of it
#        once more under compute-sanitizer                                          compute-sanitizer
# c      a provoked error 700 costs no tile                           1 min         a device, pycuda
# d      real engines give the map of ONNX Runtime                    5 to 30 min   TensorRT or TensorRT-RTX for this card
# e      latency and throughput, and what PyTorch takes on this card  10 to 40 min  as d; torch with CUDA for the others
# f      how many tiles a second reading and writing allow            2 min         a device, pycuda
#
# A stage that fails does not stop the others. What a stage needs and the machine lacks is named and left out.
#
# DIR of wheels holds what the machine lacks, brought along: wheels (whole, or split into NAME.whl.part-aa, -ab, ...),
# pycuda's source archive, and SHA256SUMS of the whole files if there is one. export/README.md lists them.
# Results, in --out: run.log, device.txt, smoke.csv, provoked.csv, gpu-tests.xml, agreement.csv, agreement.md,
# latency.csv, peers.csv, raster.csv.
# --work keeps what was installed for the next call. --dry-run joins and checks the wheels, and prints the rest.
#
# Exit codes: 0 all is well; 1 a stage failed (the others ran); 2 options; 3 the wheels.
# shellcheck disable=SC2329 # stages are called by name
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
wheels='' out='' stages=a,b,c,d,e,f bundle="$root/engine/demo/bundle" work='' python=python3 dry=0

usage() {
    sed -n '2,/^set/{/^set/d;s/^# \{0,1\}//;p}' "${BASH_SOURCE[0]}"
    exit "$1"
}

while [ $# -gt 0 ]; do
    case $1 in
        --dry-run) dry=1 ;;
        --help | -h) usage 0 ;;
        --wheels | --out | --stages | --bundle | --work | --python)
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
[ -n "$out" ] || { echo 'error: --out DIR is needed' >&2; exit 2; }
case ,$stages, in
    *[!a-f,]* | *,,*) echo "error: --stages takes a list of a, b, c, d, e, f, received $stages" >&2; exit 2 ;;
esac
if [ -n "$wheels" ]; then
    [ -d "$wheels" ] || { echo "error: $wheels is not a folder" >&2; exit 3; }
    wheels=$(cd "$wheels" && pwd)
fi
mkdir -p "$out"
out=$(cd "$out" && pwd)
if [ -z "$work" ]; then
    work=$(mktemp -d)
    trap 'rm -rf "$work"' EXIT
fi
mkdir -p "$work/carried"

if [ "$dry" = 0 ]; then
    exec > >(tee "$out/run.log") 2>&1
fi

# Print a command, and run it unless this is a rehearsal.
step() {
    printf '+'
    printf ' %q' "$@"
    printf '\n'
    [ "$dry" = 1 ] || "$@"
}

# --- what was carried, whole again -----------------------------------------------------------------------------------

shopt -s nullglob
if [ -z "$wheels" ]; then
    mkdir -p "$work/none"
    wheels=$work/none
fi
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
        # Some toolkits are split into packages: cuda.h is in one of them, cudaProfiler.h in another.
        if [ -z "$cuda" ] && [ -e "$candidate/include/cuda.h" ] && [ -e "$candidate/include/cudaProfiler.h" ]; then
            cuda=$candidate
        fi
    done
    if [ -z "$cuda" ]; then
        echo 'error: pycuda needs cuda.h and cudaProfiler.h of the CUDA toolkit (packages cuda-cudart-dev and' \
            'cuda-profiler-api): set CUDA_HOME to the folder above include/' >&2
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

# --- the stages ------------------------------------------------------------------------------------------------------

cd "$root"
if [ "$dry" = 0 ]; then
    { nvidia-smi || cat /etc/nv_tegra_release; } >"$out/device.txt" 2>&1 || true
fi
export GEMMNET_REQUIRE_GPU=1 GEMMNET_PLANS="$work/plans" PYTHONUNBUFFERED=1
summary='' failed=0

# A command of a stage: its failure is the stage's, and the next command runs.
try() {
    step "$@" || result=failed
}

# What a stage cannot do without, as a command that fails and says why; false leaves the stage out.
needs() {
    [ "$dry" = 1 ] && return 0
    local why
    why=$("$@" 2>&1) && return 0
    result="left out: ${why##*$'\n'}"
    return 1
}

stage() {
    local letter=$1 title=$2 result=passed began=$SECONDS
    [[ ,$stages, == *,$letter,* ]] || return 0
    printf '\n=== %s: %s\n' "$letter" "$title"
    "stage_$letter"
    [ "$result" = failed ] && failed=1
    printf '=== %s: %s, %d s\n' "$letter" "$result" "$((SECONDS - began))"
    summary+="$letter  $title: $result"$'\n'
}

stage_a() {
    try "$python" -m tests.gpu.smoke --device
}

stage_b() {
    try "$python" -m tests.gpu.smoke --tiles 600 --bundle "$bundle" --out "$out/smoke.csv"
    local sanitizer
    sanitizer=$(command -v compute-sanitizer || echo /usr/local/cuda/bin/compute-sanitizer)
    if [ "$dry" = 1 ] || [ -x "$sanitizer" ]; then
        try "$sanitizer" --tool memcheck --error-exitcode 9 \
            "$python" -m tests.gpu.smoke --tiles 30 --rounds 2 --scratch 4 --bundle "$bundle"
    else
        echo 'compute-sanitizer is not installed (it comes with the CUDA toolkit): this part is left out'
    fi
}

stage_c() {
    try "$python" -m tests.gpu.smoke --provoke --bundle "$bundle" --out "$out/provoked.csv"
}

has_engines() {
    "$python" - <<'PYTHON'
import sys
from engine.contract.errors import EngineError
from export.cuda_device import current_device
from export.trt_library import open_library

try:
    library, device = open_library("auto"), current_device()
except EngineError as error:
    sys.exit(str(error))
listed = library.compute_capabilities
if listed and device.compute_capability not in listed:
    sys.exit(f"{library.name} {library.version} has kernels for {', '.join(map(str, listed))}, this is {device}")
PYTHON
}

stage_d() {
    needs has_engines || return 0
    try "$python" -m export.build --bundle "$bundle" --cache "$work/plans"
    try "$python" -m export.audit --bundle "$bundle" --cache "$work/plans" --engines
    try "$python" -m pytest tests/gpu -m gpu -v -rA --junitxml "$out/gpu-tests.xml"
    try "$python" -m benchmarks.agreement --bundle "$bundle" --plans "$work/plans" \
        --backends tensorrt,onnxruntime --out "$out/agreement.csv"
}

stage_e() {
    needs has_engines || return 0
    try "$python" -m export.build --bundle "$bundle" --cache "$work/plans"
    try "$python" -m benchmarks.latency --bundle "$bundle" --plans "$work/plans" --record \
        --tiles 200 --rounds 5 --backends tensorrt --out "$out/latency.csv"
    try "$python" -m benchmarks.peers --groups tile --tiles 100 --rounds 5 --out "$out/peers.csv"
}

stage_f() {
    try "$python" -m tests.gpu.smoke --raster --mpx 64 --bundle "$bundle" --out "$out/raster.csv"
}

stage a 'Python reaches the device'
stage b 'streams, capture, memory and teardown, byte by byte'
stage c 'a provoked error 700 costs no tile'
stage d 'real engines give the map of ONNX Runtime'
stage e 'latency and throughput, and what PyTorch takes on this card'
stage f 'how many tiles a second reading and writing allow'
printf '\n%s' "$summary"
exit "$failed"
