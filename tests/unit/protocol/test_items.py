"""Items as values."""

from __future__ import annotations

from scp_server.protocol.items import UserIdentityRQ


def test_a_user_identity_shows_neither_name_nor_passcode() -> None:
    identity = UserIdentityRQ(2, True, b"alice", b"sesame")
    assert "alice" not in f"{identity!r} {identity}"
    assert "sesame" not in f"{identity!r} {identity}"
    assert "positive_response_requested=True" in repr(identity)
