"""How long a test waits for a process that may compile: what takes two minutes may take ten on a slow, busy machine."""

PATIENCE = 1800  # seconds
