"""`python -m scp_server`: the command line."""

from __future__ import annotations

from scp_server.cli.main import main

if __name__ == "__main__":
    main()
