"""Documents to tokens: who is held out, in which order, and in which files."""
