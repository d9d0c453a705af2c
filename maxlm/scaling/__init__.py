"""Scaling laws: fitted to small runs, with intervals, to predict large ones; no JAX."""
