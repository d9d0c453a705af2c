"""Personal data in texts: who can be reached, paid for, identified or logged in as."""
