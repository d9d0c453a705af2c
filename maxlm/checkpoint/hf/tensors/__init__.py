"""Published tensors: how their axes are ours, and the files that they are in."""
