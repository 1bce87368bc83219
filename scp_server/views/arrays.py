"""numpy, where it is installed: the extra `volume`."""

from __future__ import annotations

from types import ModuleType

from scp_server.errors import CannotView


def numpy() -> ModuleType:
    """The module. Raises CannotView, naming the extra, where it is not installed."""
    try:
        import numpy as module
    except ImportError:
        raise CannotView(
            "pixels and masks need numpy, which is not installed (pip install 'scp-server[volume]')"
        ) from None
    return module
