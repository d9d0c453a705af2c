"""What goes wrong in steps, and what is done about it: spikes, replicas that differ."""
