"""A DICOM and DICOS server: what it has acknowledged is safe.

`Requestor`, `Server` and `Settings` are loaded when they are first used, so that the client commands start
at once.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from scp_server.net.requestor import Requestor
    from scp_server.runtime.server import Server
    from scp_server.settings import Settings

__version__ = "0.1.0"
__all__ = ["Requestor", "Server", "Settings", "__version__"]


def __getattr__(name: str) -> Any:
    if name == "Requestor":
        from scp_server.net.requestor import Requestor

        return Requestor
    if name == "Server":
        from scp_server.runtime.server import Server

        return Server
    if name == "Settings":
        from scp_server.settings import Settings

        return Settings
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
