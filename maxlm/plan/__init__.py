"""Compile a training step for accelerators that are not here, and read from the result what it
needs and costs.
"""
