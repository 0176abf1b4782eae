"""One command for a machine with a GPU, benchmarks/gpu/run.sh: what holds there, then times beside what is possible."""
