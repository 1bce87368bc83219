"""Looking after an archive: rebuilding and comparing its index, deleting, backing up and restoring."""
