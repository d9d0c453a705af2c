"""Trained models that read documents or write new ones; only here jax is loaded, at the first use."""
