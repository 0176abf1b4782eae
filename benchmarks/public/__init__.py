"""Comparisons on other people's tables: one command each, resumable, rows beside the published ones."""
