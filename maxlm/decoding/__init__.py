"""A trained model at work: its logits, and texts that it continues."""
