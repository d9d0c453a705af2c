"""The loss and its gradients: the per-device program of a step."""
