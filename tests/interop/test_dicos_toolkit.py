"""The real DICOS toolkit's client: CT, DX, TDR, echo, user identity, and four sessions at once."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import sys
from collections.abc import Awaitable, Callable, Coroutine
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from scp_server.testing import wire
from scp_server.testing.daemon import stored_files
from scp_server.testing.dataset_encoder import TransferSyntax
from scp_server.testing.dicos_objects import DICOS_VERSION, Scan, dicos_ct, dicos_dx, dicos_tdr
from scp_server.testing.encoded_object import EncodedObject

if TYPE_CHECKING:
    from tests.interop.conftest import Lane

pytestmark = pytest.mark.interop

Send = Callable[..., Coroutine[None, None, list[str]]]
CLIENT = Path(__file__).with_name("dicos_client.py")
READER = Path(__file__).with_name("dicos_reader.py")
SYNTAXES = [
    TransferSyntax.EXPLICIT_VR_LITTLE_ENDIAN,
    TransferSyntax.EXPLICIT_VR_LITTLE_ENDIAN_64,
    TransferSyntax.JPEG_LOSSLESS,
    TransferSyntax.IMPLICIT_VR_LITTLE_ENDIAN,
]
"""The four that the client offers for a CT of 16 bits."""


def preferring(syntax: TransferSyntax) -> dict[str, str]:
    """The daemon's environment for one preferred transfer syntax."""
    return {"SCP_SERVER_NEGOTIATION__TRANSFER_SYNTAXES": json.dumps([syntax.value, "*"])}


@pytest.fixture(autouse=True)
def toolkit(require_peer: Callable[[str, object], None]) -> None:
    require_peer("the DICOS toolkit (pydicos)", importlib.util.find_spec("pyDICOS"))


@pytest.fixture
def send(
    run_peer: Callable[..., Awaitable[str]],
    write_files: Callable[..., list[Path]],
) -> Send:
    """Send objects, each with its kind, through the toolkit's client; the steps it reported a success for."""

    async def send(
        lane: Lane, *objects: tuple[str, EncodedObject], options: tuple[str, ...] = (), folder: str = "out"
    ) -> list[str]:
        paths = write_files(*(one for _, one in objects), folder=folder, suffix=".dcs")
        files = [f"{kind}:{path}" for (kind, _), path in zip(objects, paths, strict=True)]
        output = await run_peer(sys.executable, CLIENT, str(lane.port), *options, *files)
        steps = [json.loads(line) for line in output.splitlines() if line.startswith("{")]
        assert all(step["success"] for step in steps), output
        return [step["step"].partition(":")[0] for step in steps]

    return send


@pytest.mark.parametrize(
    ("environment", "syntax"),
    [(preferring(syntax), syntax) for syntax in SYNTAXES],
    ids=[syntax.name for syntax in SYNTAXES],
)
async def test_ct_is_sent_in_the_transfer_syntax_we_prefer(
    lane: Lane, syntax: TransferSyntax, send: Send
) -> None:
    await send(lane, ("CT", dicos_ct(frames=5)))
    (sent,) = await lane.expect_kept_as_sent(1)
    assert sent.transfer_syntax_uid == syntax
    assert sent.glued
    (stored,) = stored_files(lane.daemon.data_dir)
    assert stored.dicos_version == DICOS_VERSION


async def test_explicit_little_endian_is_chosen_where_nothing_is_configured(lane: Lane, send: Send) -> None:
    await send(lane, ("CT", dicos_ct()))
    (sent,) = await lane.expect_kept_as_sent(1)
    assert sent.transfer_syntax_uid == TransferSyntax.EXPLICIT_VR_LITTLE_ENDIAN


async def test_both_sections_of_a_ct_are_kept_under_one_uid(lane: Lane, send: Send) -> None:
    image = dicos_ct()
    await send(lane, ("CT2", image))
    first, second = await lane.expect_kept_as_sent(2)
    assert first.sop_instance_uid == second.sop_instance_uid == image.sop_instance_uid
    assert first.dataset != second.dataset
    assert len(stored_files(lane.daemon.data_dir)) == 2


async def test_echo_ct_dx_and_both_reports_on_one_association(lane: Lane, send: Send) -> None:
    image = dicos_ct()
    objects = [
        ("CT", image),
        ("DX", dicos_dx()),
        ("TDR", dicos_tdr(image)),
        ("TDR", dicos_tdr(image, decision="CLEAR")),
    ]
    steps = await send(lane, *objects, options=("--echo",))
    assert steps == ["connect", "associate", "echo", "CT", "DX", "TDR", "TDR"]
    sent = await lane.expect_kept_as_sent(4)
    assert [one.sop_instance_uid for one in sent] == [one.sop_instance_uid for _, one in objects]
    assert len(lane.proxy.recordings) == 1


async def test_it_reads_the_files_that_are_kept(
    lane: Lane, send: Send, run_peer: Callable[..., Awaitable[str]]
) -> None:
    image = dicos_ct()
    objects = {"CT": image, "DX": dicos_dx(), "TDR": dicos_tdr(image)}
    await send(lane, *objects.items())
    await lane.expect_kept_as_sent(len(objects))
    kinds = {one.sop_instance_uid: kind for kind, one in objects.items()}
    kept = [f"{kinds[one.sop_instance_uid]}:{one.path}" for one in stored_files(lane.daemon.data_dir)]
    output = await run_peer(sys.executable, READER, *kept)
    verdicts = [json.loads(line) for line in output.splitlines() if line.startswith("{")]
    assert [(each["read"], each["log"]) for each in verdicts] == [(True, "")] * len(objects)


@pytest.mark.parametrize(
    ("options", "identity_type"),
    [(("--user", "guard"), 1), (("--user", "guard", "--passcode", "s3cret-word"), 2)],
    ids=["user-name", "user-name-and-passcode"],
)
async def test_user_identity_is_answered_and_its_passcode_never_logged(
    lane: Lane, send: Send, options: tuple[str, ...], identity_type: int
) -> None:
    await send(lane, ("TDR", dicos_tdr()), options=("--echo", *options))
    await lane.expect_kept_as_sent(1)
    (recording,) = lane.proxy.recordings
    request = dict(wire.items(bytes(recording.sent)[74 : 6 + int.from_bytes(recording.sent[2:6], "big")]))
    identity = dict(wire.items(request[wire.ItemType.USER_INFORMATION]))[wire.ItemType.USER_IDENTITY_RQ]
    assert identity[:2] == bytes([identity_type, 1])
    length = int.from_bytes(recording.answered[2:6], "big")
    answer = wire.read_answer(bytes(recording.answered[6 : 6 + length]))
    assert answer.user_items[wire.ItemType.USER_IDENTITY_AC] == b"\0\0"
    assert answer.application_context == wire.DICOS_V03_APPLICATION_CONTEXT
    assert not any("s3cret-word" in line for line in lane.daemon.output)


async def test_four_sessions_at_once(lane: Lane, send: Send) -> None:
    async with asyncio.TaskGroup() as group:
        for number in range(4):
            scan = Scan(f"BAG{number}", f"SCAN-{number}")
            image = dicos_ct(seed=number, scan=scan, frames=20, rows=64, columns=64)
            group.create_task(
                send(
                    lane,
                    ("CT", image),
                    ("DX", dicos_dx(seed=number, scan=scan)),
                    ("TDR", dicos_tdr(image, scan=scan)),
                    options=("--echo",),
                    folder=f"lane{number}",
                )
            )
    await lane.expect_kept_as_sent(12)
    assert len(lane.proxy.recordings) == 4
