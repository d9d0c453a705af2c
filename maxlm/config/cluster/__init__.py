"""Where a run is launched: Slurm, TPU slices, Kubernetes."""
