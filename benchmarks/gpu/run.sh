#!/usr/bin/env bash
# Correctness and speed of every op on this machine's GPU, in three calls of less than 9 minutes; no network is needed.
# The CUDA backend is built first where there is nvcc, and then stands beside Triton.
#
#   benchmarks/gpu/run.sh check     every op against the reference, bits, and compute-sanitizer
#   benchmarks/gpu/run.sh time      ours
#   benchmarks/gpu/run.sh peers     other libraries on the same cases
#   benchmarks/gpu/run.sh           all three, one after the other
#   benchmarks/gpu/run.sh merge     only writes the table of what there is
#   benchmarks/gpu/run.sh check loss philox            anew those sections of a part whose names have one of the words
#   FASTNDSM_BENCH_SIZE=tiny benchmarks/gpu/run.sh     the code path alone, on a CPU too; its figures mean nothing
#
# A call that was killed, or had too little time, is repeated: it goes on with the sections that have not ended, as long
# as the sources are the same. Results go to benchmarks/results/gpu-DEVICE.json and .md, each section's to gpu-sections/.
#
# Settings: PYTHON (default python3), FASTNDSM_BENCH_RESULTS (another folder), FASTNDSM_BENCH_SECONDS (of a call),
# FASTNDSM_BENCH_PROCESSES (sections at a time where nothing is timed).
# It exits with 1 if a check of the library failed, with 2 if sections are left for another call.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1
exec "${PYTHON:-python3}" -m benchmarks.gpu "$@"
