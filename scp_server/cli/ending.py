"""How a command ends: what it raises on purpose becomes an exit code."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable

import typer

from scp_server.errors import AssociationError, ConfigurationError, SCPServerError


def end(command: Callable[[], int]) -> None:
    """Run a command and end with its exit code; what it raises on purpose becomes one."""
    from scp_server.cli.output import ExitCode, complain

    try:
        code = command()
        sys.stdout.flush()
    except ConfigurationError as error:
        complain(str(error))
        code = ExitCode.USAGE
    except AssociationError as error:
        complain(str(error))
        code = ExitCode.NO_ASSOCIATION
    except SCPServerError as error:
        complain(str(error))
        code = ExitCode.FAILED
    except KeyboardInterrupt:
        complain("interrupted")
        code = ExitCode.FAILED
    except BrokenPipeError:
        # What is still in the buffer has no reader; the interpreter must not try to flush it again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = ExitCode.FAILED
    raise typer.Exit(int(code))
