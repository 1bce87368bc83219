"""The settings of what is done about objects that are not what their class says."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from scp_server.settings.limits import Count, Seconds
from scp_server.settings.section import Section

Policy = Literal["off", "record", "quarantine", "refuse"]


class ValidationSettings(Section):
    """What is done about objects that break rules (docs/validation.md)."""

    dicos: Policy = Field(
        default="record",
        description="For objects of DICOS's SOP classes: off looks at none; record stores them, with "
        "what was found beside them; quarantine refuses those with errors (0xC000, or 0xA900 where the data "
        "set is not of its SOP class) and keeps them in quarantine; refuse does not keep them.",
    )
    medical: Policy = Field(
        default="off",
        description="The same for all other objects, of which UIDs, VRs, multiplicities and forms are looked "
        "at. Off by default, for it costs each of them some tenths of a millisecond.",
    )
    refuse_from: Literal["error", "warning"] = Field(
        default="error", description="The least severity for which quarantine and refuse refuse an object."
    )
    timeout_seconds: Seconds = Field(
        default=5.0,
        description="How long an object waits for its validation; then it is stored, with a finding that "
        "says so, whatever the policy is.",
    )
    max_findings: Count = Field(
        default=100,
        le=1_000,
        description="Findings of one object that are kept in the index; all are counted.",
    )
    threads: Count = Field(
        default=2,
        le=64,
        description="Validations at once. As many that never end are left alone; then nothing is judged "
        "until one of them ends.",
    )
