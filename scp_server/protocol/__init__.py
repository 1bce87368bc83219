"""PS3.8 and PS3.7 without I/O: bytes in, events out, and back. No sockets, no clock."""
