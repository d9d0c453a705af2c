"""The data card of a corpus: one HTML page that says what is in it, what is not, and why."""
