#!/bin/sh
# Checks kvtier on this machine's GPU, measures it, and keeps the results beside this script as
# gpu-<device>-<date>.json and .md (the check as gpu-<device>-<date>-check.json).
#
#   ./run.sh                  the whole check and the whole measurement: some minutes
#   ./run.sh --device 1       another GPU
#   QUICK=1 ./run.sh          a minute
#
# Needs an NVIDIA driver (CUDA 12.4 or later) and a C library not older than the build machine's. No toolchain,
# no network. With python3 and torch the copies of other projects are measured, too; with pytest as well, the wheel
# is tested on torch tensors in the shapes of vLLM, SGLang and LMCache.
set -eu
cd "$(dirname "$0")"

device=0
while [ $# -gt 0 ]; do
    case $1 in
    --device) device=${2:?--device needs a number}; shift 2 ;;
    *) echo "usage: run.sh [--device N]" >&2; exit 2 ;;
    esac
done

./kvtier gpu info
# The name of the device as it may stand in the name of a file.
name=$(./kvtier gpu info --json | tr '{' '\n' | grep "\"ordinal\":$device," |
    sed 's/.*"name":"\([^"]*\)".*/\1/' | tr 'A-Z ' 'a-z-' | tr -cd 'a-z0-9-')
stem=gpu-${name:-device-$device}-$(date -u +%F)

check_sizes= bench_sizes=
if [ "${QUICK:-}" ]; then
    check_sizes="--quick"
    bench_sizes="--rounds 3 --fragments 4KiB,64KiB,1MiB --bytes 64MiB"
fi
# A failed check ends it: figures of wrong copies mean nothing. What failed is in the file.
# shellcheck disable=SC2086 # options are words
if ! ./kvtier gpu check --device "$device" $check_sizes --json >"$stem-check.json"; then
    echo "the check failed, see $stem-check.json" >&2
    exit 1
fi
echo "The check passed: $stem-check.json"
if python3 -c 'import pytest, torch' 2>/dev/null; then
    site=$(mktemp -d)
    python3 -m zipfile -e kvtier-*.whl "$site"
    if ! CUDA_VISIBLE_DEVICES=$device KVTIER_TORCH_DEVICE=cuda PYTHONPATH=$site \
        python3 -m pytest -q -p no:cacheprovider test_tensors.py >"$stem-torch.txt" 2>&1; then
        cat "$stem-torch.txt" >&2
        echo "the wheel failed on torch tensors, see $stem-torch.txt" >&2
        exit 1
    fi
    rm -r "$site"
    echo "The wheel passed: $stem-torch.txt"
else
    echo "no torch or no pytest: the wheel was not tested" >&2
fi
# shellcheck disable=SC2086
./kvtier gpu bench --device "$device" $bench_sizes --out "$stem"
echo "Results: $stem.json, $stem.md"
