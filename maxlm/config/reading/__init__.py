"""From YAML files to a run, with a message for every mistake in them."""
