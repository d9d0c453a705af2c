"""Whether hosts, devices, networks and folders are as a run needs them."""
