"""Families with experts, and their relatives without."""
