"""Ladders of runs: planned, run, looked at, and fitted."""
