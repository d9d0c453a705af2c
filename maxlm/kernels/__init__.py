"""Kernels and their plain references. They know arrays, nothing else."""
