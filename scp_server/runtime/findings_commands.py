"""What can be asked of an index about what validations have found, over the control socket or offline."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from scp_server.index.base import FindingFilter, Index
from scp_server.objects.validation.finding import Code, Severity
from scp_server.runtime.control import Command, WrongArguments, only, text

FINDINGS_PAGE: Final = 200
"""Findings in one answer; `next` says how to go on."""


def findings_commands(index: Index) -> dict[str, Command]:
    """`findings.list`."""

    async def list_findings(arguments: Mapping[str, Any]) -> dict[str, Any]:
        only(arguments, "after", "severity", "code", "study")
        return await findings_page(index, arguments)

    return {"findings.list": list_findings}


async def findings_page(index: Index, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Findings behind `after`, at most FINDINGS_PAGE; `next` is empty when there are no more.

    Raises WrongArguments, IndexUnavailable.
    """
    severity, code = text(arguments, "severity"), text(arguments, "code")
    try:
        wanted = FindingFilter(
            severity=Severity(severity) if severity else None,
            code=Code(code).value if code else "",
            study_instance_uid=text(arguments, "study"),
        )
        found = await index.findings(wanted, after=text(arguments, "after"), limit=FINDINGS_PAGE + 1)
    except ValueError as error:
        raise WrongArguments(str(error)) from error
    listed = [each._asdict() for each in found[:FINDINGS_PAGE]]
    following = listed[-1]["after"] if len(found) > FINDINGS_PAGE else ""
    for each in listed:
        del each["after"]
    return {"findings": listed, "next": following}
