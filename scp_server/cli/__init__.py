"""The command line: `scp-server`. `main` declares the commands; each imports what it needs when it runs."""
