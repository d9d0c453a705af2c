"""Whole models, and what they cost."""
