"""What a validation finds: findings with stable codes, and the report of one object.

A sentence never quotes text that may name a person: only code strings, numbers and UIDs are quoted.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Final, NamedTuple

from scp_server.objects.dicos import dictionary as dicos
from scp_server.objects.vr import tag_text


class Severity(StrEnum):
    """How much a finding matters."""

    ERROR = "error"
    """The object breaks a rule that its readers rely on."""
    WARNING = "warning"
    """Most readers get along with it, but it is not as it should be."""
    INFO = "info"
    """Worth knowing; nothing is wrong."""


class Code(StrEnum):
    """Every kind of finding. Names are stable; docs/validation.md explains each."""

    MISSING_TYPE_1 = "missing-type-1"
    EMPTY_TYPE_1 = "empty-type-1"
    MISSING_TYPE_2 = "missing-type-2"
    UID = "uid"
    DATE_TIME = "date-time"
    NUMBER = "number"
    LENGTH = "length"
    CLASS_CONTENT = "class-content"
    MODALITY = "modality"
    DICOS_VERSION = "dicos-version"
    TDR_TYPE = "tdr-type"
    META_MISSING = "meta-missing"
    META_MISMATCH = "meta-mismatch"
    FRAMES = "frames"
    NO_PIXEL_DATA = "no-pixel-data"
    PIXEL_LENGTH = "pixel-length"
    PTO_ID = "pto-id"
    PROBABILITY = "probability"
    POLYGON = "polygon"
    BITMAP = "bitmap"
    REGION = "region"
    ALARM_OBJECTS = "alarm-objects"
    SCALE = "scale"
    UNREADABLE = "unreadable"
    TOTAL_OBJECTS = "total-objects"
    ENUMERATION = "enumeration"
    VR = "vr"
    VM = "vm"
    TOO_LONG = "too-long"
    CHARACTERS = "characters"
    BITS = "bits"
    META_VERSION = "meta-version"
    NOT_EXAMINED = "not-examined"
    VALIDATOR_FAILED = "validator-failed"
    PRIVATE_ELEMENTS = "private-elements"
    UNKNOWN_ELEMENT = "unknown-element"
    MORE_FINDINGS = "more-findings"


SEVERITIES: Final[Mapping[Code, Severity]] = {
    **dict.fromkeys(Code, Severity.ERROR),
    **dict.fromkeys(
        (
            Code.TOTAL_OBJECTS,
            Code.ENUMERATION,
            Code.VR,
            Code.VM,
            Code.TOO_LONG,
            Code.CHARACTERS,
            Code.BITS,
            Code.META_VERSION,
            Code.NOT_EXAMINED,
            Code.VALIDATOR_FAILED,
        ),
        Severity.WARNING,
    ),
    **dict.fromkeys((Code.PRIVATE_ELEMENTS, Code.UNKNOWN_ELEMENT, Code.MORE_FINDINGS), Severity.INFO),
}
"""A code has one severity."""


class Path(NamedTuple):
    """Where an element lies: the sequences around it, each with its item's number from 1, and its tag."""

    tag: int
    around: tuple[tuple[int, int], ...] = ()

    def __str__(self) -> str:
        steps = [f"{tag_text(tag)}[{number}]" for tag, number in self.around]
        return " > ".join([*steps, tag_text(self.tag)])

    def inside(self, number: int) -> tuple[tuple[int, int], ...]:
        """What is around the elements of an item of this sequence."""
        return (*self.around, (self.tag, number))


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was found. `path`, `keyword` and `vr` are empty where it concerns no single element."""

    severity: Severity
    code: Code
    path: str
    keyword: str
    vr: str
    sentence: str

    def as_json(self) -> dict[str, str]:
        """The finding as a JSON object."""
        return {name: str(value) for name, value in asdict(self).items()}


@dataclass(frozen=True, slots=True)
class Report:
    """What was found in one object. The counts are of everything found, also of what is not listed."""

    findings: tuple[Finding, ...]
    errors: int
    warnings: int
    infos: int
    offending_tags: tuple[int, ...] = ()
    """Tags of the first elements with errors, each once, for Offending Element (0000,0901)."""

    @classmethod
    def of_failure(cls, why: str) -> Report:
        """That of an object which could not be judged, through no fault of its own."""
        code = Code.VALIDATOR_FAILED
        return cls((Finding(SEVERITIES[code], code, "", "", "", f"The validation failed: {why}."),), 0, 1, 0)

    @property
    def error_codes(self) -> list[Code]:
        """The codes of the errors that are listed, each once."""
        found = (finding.code for finding in self.findings if finding.severity is Severity.ERROR)
        return list(dict.fromkeys(found))

    @property
    def has_failed(self) -> bool:
        """The object was not judged to the end, through no fault of its own."""
        return any(finding.code is Code.VALIDATOR_FAILED for finding in self.findings)

    def as_json(self) -> dict[str, object]:
        """The report as a JSON object."""
        return {
            "errors": self.errors,
            "warnings": self.warnings,
            "infos": self.infos,
            "findings": [finding.as_json() for finding in self.findings],
        }


@dataclass(slots=True)
class Findings:
    """Collects the findings of one object: lists `most` of them, and counts them all."""

    most: int
    _listed: list[Finding] = field(default_factory=list)
    _counts: dict[Severity, int] = field(default_factory=lambda: dict.fromkeys(Severity, 0))
    _offending: dict[int, None] = field(default_factory=dict)

    def add(self, code: Code, sentence: str, path: Path | None = None, vr: str = "") -> None:
        """One more."""
        severity = SEVERITIES[code]
        self._counts[severity] += 1
        if len(self._listed) >= self.most:
            return
        if path is None:
            self._listed.append(Finding(severity, code, "", "", "", sentence))
            return
        if severity is Severity.ERROR:
            self._offending[path.tag] = None
        self._listed.append(Finding(severity, code, str(path), keyword_of(path.tag), vr, sentence))

    def report(self) -> Report:
        """All that was found so far."""
        counts = self._counts
        left_out = sum(counts.values()) - len(self._listed)
        return Report(
            (*self._listed, *self._more(left_out)),
            counts[Severity.ERROR],
            counts[Severity.WARNING],
            counts[Severity.INFO],
            tuple(self._offending),
        )

    def _more(self, left_out: int) -> Iterator[Finding]:
        if left_out:
            code = Code.MORE_FINDINGS
            yield Finding(SEVERITIES[code], code, "", "", "", f"{left_out} more findings are not listed.")


def keyword_of(tag: int) -> str:
    """DICOS's keyword of an attribute, or DICOM's; empty where it has none."""
    keyword = dicos.keyword_of(tag)
    if keyword is None:
        from pydicom.datadict import keyword_for_tag

        keyword = keyword_for_tag(tag)
    return keyword
