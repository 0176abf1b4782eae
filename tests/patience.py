"""Seconds that tests wait for processes that may compile: two minutes of work may take ten on a slow, busy machine."""

PATIENCE = 1800
