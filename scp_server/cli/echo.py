"""`scp-server echo`."""

from __future__ import annotations

import asyncio
import time

from scp_server.cli.output import ExitCode, fail, say, say_json, status_meaning, status_text
from scp_server.cli.peer import Peer
from scp_server.errors import AssociationError, LocalProtocolError
from scp_server.protocol.message import VERIFICATION_SOP_CLASS_UID
from scp_server.protocol.status import Status

_TRANSFER_SYNTAXES = ("1.2.840.10008.1.2.1", "1.2.840.10008.1.2")


def run_echo(peer: Peer, *, as_json: bool) -> ExitCode:
    """Associate, C-ECHO, release, and say how it went."""
    try:
        status, seconds = asyncio.run(_echo(peer))
    except AssociationError as error:
        return fail(f"no echo from {peer}: {error}", ExitCode.NO_ASSOCIATION, as_json=as_json)
    except LocalProtocolError as error:
        return fail(f"no echo from {peer}: {error}", ExitCode.FAILED, as_json=as_json)
    milliseconds = round(seconds * 1000, 1)
    if as_json:
        say_json(
            {
                "host": peer.host,
                "port": peer.port,
                "called_ae_title": peer.called_ae_title,
                "calling_ae_title": peer.calling_ae_title,
                "status": status_text(status),
                "meaning": status_meaning(status),
                "milliseconds": milliseconds,
            }
        )
    else:
        say(f"echo from {peer}: {status_text(status)} {status_meaning(status)} ({milliseconds} ms)")
    return ExitCode.OK if status == Status.SUCCESS else ExitCode.FAILED


async def _echo(peer: Peer) -> tuple[int, float]:
    """The status, and the seconds from request to response."""
    async with peer.requestor([(VERIFICATION_SOP_CLASS_UID, _TRANSFER_SYNTAXES)]) as association:
        begun = time.monotonic()
        status = await association.echo()
        return status, time.monotonic() - begun
