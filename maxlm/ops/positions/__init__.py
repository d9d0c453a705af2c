"""Positions of tokens as numbers: rotations, sinusoids, and what is added to scores by distance."""
