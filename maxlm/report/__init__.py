"""`maxlm report RUN_DIR`: one HTML page that says what happened to a run."""
