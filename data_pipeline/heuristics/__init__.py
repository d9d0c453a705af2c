"""Published rules about texts, and the statistics that they share."""
