"""The examples of docs/api.md, run as they stand against an archive by pynetdicom."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydicom import dcmread
from pydicom.dataset import Dataset
from pynetdicom import AE, build_context, evt

from scp_server.objects.query_model import QueryLevel, default_keys
from scp_server.testing.objects import CT_IMAGE_STORAGE, ct_image

PAGE = (Path(__file__).parents[2] / "docs/api.md").read_text(encoding="utf-8")
EXAMPLES = re.findall(r"^```python\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
STUDY_ROOT = "1.2.840.10008.5.1.4.1.2.2.1"
STUDY_MOVE, STUDY_GET = "1.2.840.10008.5.1.4.1.2.2.2", "1.2.840.10008.5.1.4.1.2.2.3"
WORKLIST = "1.2.840.10008.5.1.4.31"
EXPLICIT = "1.2.840.10008.1.2.1"
IMAGES = [ct_image(rows=8, columns=8, seed=seed) for seed in range(2)]


def _find(event: Any) -> Iterator[tuple[int, Dataset | None]]:
    asked = event.identifier
    if asked.get("PatientID") == "WRONG":
        yield 0xA900, None
        return
    for number in (1, 2, 3):
        if event.is_cancelled:
            yield 0xFE00, None
            return
        answer = Dataset()
        for element in asked:
            answer[element.tag] = element
        if "SeriesInstanceUID" in asked:
            answer.SeriesInstanceUID = f"{asked.get('StudyInstanceUID') or '9'}.{number}"
        elif "StudyInstanceUID" in asked:
            answer.StudyInstanceUID = f"1.{number}"
        if "NumberOfStudyRelatedInstances" in asked:
            answer.NumberOfStudyRelatedInstances = number - 1
        yield 0xFF00, answer


def _get(_event: Any) -> Iterator[Any]:
    yield len(IMAGES)
    for one in IMAGES:
        yield 0xFF00, dcmread(io.BytesIO(one.part10()))


@pytest.fixture
def address() -> Iterator[tuple[str, int]]:
    ae = AE("ARCHIVE")
    contexts = [build_context(uid) for uid in (STUDY_ROOT, STUDY_GET, STUDY_MOVE, WORKLIST)]
    ae.add_supported_context(CT_IMAGE_STORAGE, EXPLICIT, scu_role=True, scp_role=True)
    ae.add_requested_context(CT_IMAGE_STORAGE, EXPLICIT)
    contexts += ae.supported_contexts

    def negotiate(event: Any) -> dict[Any, bytes]:
        return dict.fromkeys(event.app_info, b"\x01")

    def move(_event: Any) -> Iterator[Any]:
        assert server is not None
        yield server.server_address
        yield from _get(_event)

    handlers: list[Any] = [
        (evt.EVT_C_FIND, _find),
        (evt.EVT_C_GET, _get),
        (evt.EVT_C_MOVE, move),
        (evt.EVT_C_STORE, lambda _event: 0),
        (evt.EVT_SOP_EXTENDED, negotiate),
    ]
    server = ae.start_server(("127.0.0.1", 0), block=False, contexts=contexts, evt_handlers=handlers)
    assert server is not None
    yield "127.0.0.1", server.server_address[1]
    server.shutdown()


ARGUMENTS_AND_RESULTS: dict[str, tuple[tuple[Any, ...], Any]] = {
    "studies_of": (("DOE*",), ["1.1", "1.2", "1.3"]),
    "first_with_images": ((), "1.2"),
    "series_by_study": ((), {f"1.{n}": [f"1.{n}.{one}" for one in (1, 2, 3)] for n in (1, 2, 3)}),
    "report": (({"PatientID": "WRONG"},), "failed: C-FIND ended with status 0xA900"),
    "scheduled": (("20260101",), None),
    "series_of_any_study": ((), ["9.1", "9.2", "9.3"]),
    "fetch": (("1.2", "FOLDER"), 2),
    "send_to": (("1.2", "VIEWER"), ()),
    "sizes_of": (("1.2",), {one.sop_instance_uid: len(one.dataset) for one in IMAGES}),
}


@pytest.mark.parametrize(
    "example", EXAMPLES, ids=lambda text: re.findall(r"^async def (\w+)", text, re.MULTILINE)[0]
)
async def test_an_example_does_what_the_page_says(
    example: str, address: tuple[str, int], tmp_path: Path
) -> None:
    (name,) = re.findall(r"^async def (\w+)", example, re.MULTILINE)
    namespace: dict[str, Any] = {}
    exec(compile(example, f"docs/api.md: {name}", "exec"), namespace)
    arguments, expected = ARGUMENTS_AND_RESULTS[name]
    arguments = tuple(tmp_path if one == "FOLDER" else one for one in arguments)
    result = await namespace[name](*address, *arguments)
    if expected is not None:
        assert result == expected
    else:
        assert len(result) == 3
        assert result[0]["00400100"]["Value"][0]["00400002"]["Value"] == ["20260101"]


def test_every_example_is_known_here() -> None:
    assert len(EXAMPLES) == len(ARGUMENTS_AND_RESULTS)


@pytest.mark.parametrize("level", [*QueryLevel, None], ids=str)
def test_the_default_return_keys_are_as_the_page_says(level: QueryLevel | None) -> None:
    row = re.search(rf"^\| {level or 'worklist'} \| (.*) \|$", PAGE, re.MULTILINE)
    assert row is not None
    expected = []
    for keyword, inner in default_keys(level).items():
        expected += [keyword, *(inner if isinstance(inner, dict) else ())]
    assert re.findall(r"[A-Z]\w+", row[1]) == expected
