"""Start runs on one machine or many."""
