"""Training: state, loss, step, evaluation, set-up and the loop."""
