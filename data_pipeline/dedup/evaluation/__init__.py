"""Evaluation data: read from files, and found in documents."""
