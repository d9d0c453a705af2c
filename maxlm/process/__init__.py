"""What this process is told and what it is doing: signals, phases, heartbeat, stacks. Nothing here
imports JAX, so that it stands before JAX is loaded.
"""
