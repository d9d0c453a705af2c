"""The stages of a run: each turns the files of the one before into its own, by tasks."""
