"""The settings of rules that forward: the `[[forward]]` tables."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import Field, field_validator

from scp_server.settings.remotes import RemoteSettings
from scp_server.settings.rules import RuleSettings
from scp_server.settings.section import AETitle


class ForwardSettings(RuleSettings):
    """One rule: which objects are sent on, and where to."""

    to: Annotated[tuple[AETitle, ...], Field(strict=False)] = Field(
        description="AE titles of the remotes that each such object is sent to; they stand in [[remotes]]. "
        "Must be given. Each has a line of its own in the outbox, and waits for none of the others."
    )
    priority: Literal["low", "medium", "high"] = Field(
        default="medium", description="Priority (0000,0700) of the C-STORE-RQ."
    )

    @field_validator("to")
    @classmethod
    def _to(cls, titles: tuple[str, ...]) -> tuple[str, ...]:
        if not titles:
            raise ValueError("must not be empty")
        for position, title in enumerate(titles):
            if title in titles[:position]:
                raise ValueError(f"names {title} twice")
        return titles


def check_remotes(rules: Sequence[ForwardSettings], remotes: Sequence[RemoteSettings]) -> None:
    """Raises ValueError for a rule that sends to what is none of the remotes."""
    known = {remote.ae_title for remote in remotes}
    for position, rule in enumerate(rules):
        for title in rule.to:
            if title not in known:
                raise ValueError(f"forward.{position}.to names {title!r}, which is none of the [[remotes]]")
