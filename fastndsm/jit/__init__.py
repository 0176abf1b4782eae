"""Build compiled code on first use, in a cache directory of the user's own: `core` csrc/cpu, `cuda` csrc/cuda."""
