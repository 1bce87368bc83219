"""Several processes on one port: the primary, which is a whole server, and satellites that it starts."""
