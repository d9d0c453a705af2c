"""Compiled programs: where they are kept, and when they are compiled."""
