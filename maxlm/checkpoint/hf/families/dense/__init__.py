"""Families without experts."""
