"""What a run reports: the catalogue of metrics, the files they go to, the terminal."""
