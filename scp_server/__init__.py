"""A DICOM and DICOS server: what it has acknowledged is safe.

The names below are loaded when they are first used, so that the client commands start at once.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from scp_server.net.requestor import Requestor
    from scp_server.objects.storage_contexts import storage_contexts
    from scp_server.pipeline.callback import callback
    from scp_server.pipeline.detector import detector
    from scp_server.pipeline.verdicts import DestinationDown, NotDelivered, Reject, Undeliverable
    from scp_server.reports.builder import TDRBuilder
    from scp_server.reports.detection import Detection
    from scp_server.runtime.server import Server
    from scp_server.settings import Settings
    from scp_server.storage.received_folder import ReceivedFolder
    from scp_server.views.opening import open_instance

__version__ = "0.1.0"
__all__ = [
    "DestinationDown",
    "Detection",
    "NotDelivered",
    "ReceivedFolder",
    "Reject",
    "Requestor",
    "Server",
    "Settings",
    "TDRBuilder",
    "Undeliverable",
    "__version__",
    "callback",
    "detector",
    "open_instance",
    "storage_contexts",
]

_MODULES = {
    "DestinationDown": "scp_server.pipeline.verdicts",
    "Detection": "scp_server.reports.detection",
    "NotDelivered": "scp_server.pipeline.verdicts",
    "ReceivedFolder": "scp_server.storage.received_folder",
    "Reject": "scp_server.pipeline.verdicts",
    "Requestor": "scp_server.net.requestor",
    "Server": "scp_server.runtime.server",
    "Settings": "scp_server.settings",
    "TDRBuilder": "scp_server.reports.builder",
    "Undeliverable": "scp_server.pipeline.verdicts",
    "callback": "scp_server.pipeline.callback",
    "detector": "scp_server.pipeline.detector",
    "open_instance": "scp_server.views.opening",
    "storage_contexts": "scp_server.objects.storage_contexts",
}


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return getattr(import_module(_MODULES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
