"""Optimizers and learning-rate schedules, over global arrays."""
