"""`maxlm doctor`: everything of `maxlm.health`, in a line each."""
