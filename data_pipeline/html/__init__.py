"""HTML to text, behind a guard."""
