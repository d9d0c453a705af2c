"""Differentiable operations on the arrays that one device holds."""
