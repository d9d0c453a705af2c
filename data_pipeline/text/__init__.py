"""Text as it should be: decoded, repaired, normalised; and its words."""
