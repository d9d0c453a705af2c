"""A mesh and the devices that are there."""
