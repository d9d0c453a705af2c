"""A linear classifier of texts over hashed words: features, fitting, calibration, the file of a model."""
