"""Speed and memory against other libraries (`pytest benchmarks`), and quality (`python benchmarks/quality.py`)."""
