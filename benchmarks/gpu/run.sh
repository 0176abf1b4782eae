#!/usr/bin/env bash
# Correctness and speed of every op on this machine's GPU, in less than 8 minutes; no network is needed.
# The CUDA backend is built first where there is nvcc, and then stands beside Triton.
#
#   benchmarks/gpu/run.sh                     results go to benchmarks/results/gpu-DEVICE.json and .md
#   FASTNDSM_BENCH_SIZE=tiny .../run.sh       the code path alone, on a CPU too; its figures mean nothing
#
# Settings: PYTHON (default python3), FASTNDSM_BENCH_RESULTS (another folder), FASTNDSM_BENCH_SECONDS (the whole run).
# It exits with 1 if a check of the library failed, and runs the rest all the same.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1
exec "${PYTHON:-python3}" -m benchmarks.gpu "$@"
