"""What bounds all workers together is divided among them, and nothing else is."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from pydantic import ValidationError

from scp_server.runtime.build import memory_ceiling_bytes
from scp_server.runtime.workers.shares import ceiling_of_all_bytes, share_of
from scp_server.settings import Settings
from scp_server.settings.show import flat

MakeSettings = Callable[..., Settings]
DIVIDED = {
    "limits.max_connections",
    "limits.max_outbound_associations",
    "limits.max_changed_objects",
    "limits.process_buffer_bytes",
    "limits.half_open_buffer_bytes",
    "codecs.max_objects",
    "retrieve.max_waiting_suboperations",
}


def test_a_lone_worker_has_everything(make_settings: MakeSettings) -> None:
    settings = make_settings()
    assert share_of(settings, 0) is settings
    assert ceiling_of_all_bytes(settings) == memory_ceiling_bytes(settings)


@pytest.mark.parametrize("workers", [2, 3])
def test_the_sum_of_the_shares_is_the_setting(make_settings: MakeSettings, workers: int) -> None:
    settings = make_settings(workers=workers)
    whole = flat(settings)
    shares = [flat(share_of(settings, number)) for number in range(workers)]
    for key in DIVIDED:
        assert sum(share[key] for share in shares) == whole[key], key
    for key in whole.keys() - DIVIDED:
        assert {repr(share[key]) for share in shares} == {repr(whole[key])}, key


def test_nobody_gets_nothing(make_settings: MakeSettings) -> None:
    settings = make_settings(
        workers=3,
        codecs={"processes": 1, "max_objects": 1},
        remotes=[{"ae_title": "PACS", "host": "127.0.0.1", "port": 104, "max_associations": 2}],
    )
    shares = [share_of(settings, number) for number in range(3)]
    assert [share.codecs.processes for share in shares] == [1, 1, 1]
    assert [share.remotes[0].max_associations for share in shares] == [1, 1, 1]


def test_the_memory_ceiling_of_all_is_no_more_than_that_of_one(make_settings: MakeSettings) -> None:
    """Whatever the number of workers: peers can make them hold the same in sum."""
    one = memory_ceiling_bytes(make_settings())
    for workers in (2, 4):
        assert ceiling_of_all_bytes(make_settings(workers=workers)) == one


@pytest.mark.parametrize(
    ("settings", "key"),
    [
        ({"workers": 0}, "workers"),
        ({"workers": 65}, "workers"),
        ({"workers": 3, "limits": {"process_buffer_bytes": 4 << 20}}, "process_buffer_bytes"),
        ({"workers": 3, "limits": {"max_associations": 1, "max_connections": 2}}, "max_connections"),
        ({"worker_silence_seconds": 0.5}, "worker_silence_seconds"),
    ],
)
def test_what_cannot_be_divided_is_refused(
    make_settings: MakeSettings, settings: dict[str, object], key: str
) -> None:
    with pytest.raises(ValidationError, match=key):
        make_settings(**settings)
