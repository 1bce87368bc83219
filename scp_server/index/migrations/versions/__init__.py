"""One module per revision of the index's schema; what stands in one that was released never changes."""
