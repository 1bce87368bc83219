"""`scp-server conformance`: what the running configuration conforms to."""

from __future__ import annotations

import sys
from pathlib import Path

from scp_server.cli.output import ExitCode, complain, say_json


def run_conformance(config: Path | None, *, as_json: bool) -> ExitCode:
    """Print the conformance statement of `config` and the environment, as a page or as JSON."""
    from scp_server.runtime.conformance import statement
    from scp_server.runtime.conformance_page import markdown
    from scp_server.settings import SettingsError, load_settings

    try:
        settings = load_settings(config)
    except SettingsError as error:
        complain(str(error))
        return ExitCode.USAGE
    claims = statement(settings)
    if as_json:
        say_json(claims)
    else:
        sys.stdout.write(markdown(claims))
    return ExitCode.OK
