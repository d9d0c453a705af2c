"""Which source each row of the training data is of, and how much of each a run reads."""
