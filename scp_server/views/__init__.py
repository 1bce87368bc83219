"""Typed views of stored objects: what is in a file, in its own terms, read when it is asked for."""
