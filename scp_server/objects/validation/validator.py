"""The validator: from what was read of an object to a report, without I/O, in bounded steps."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass, field

from scp_server.objects.part10 import FileMeta
from scp_server.objects.raw_header import RawHeader
from scp_server.objects.validation.attributes import check_attributes
from scp_server.objects.validation.elements import check_elements
from scp_server.objects.validation.finding import Code, Findings, Report
from scp_server.objects.validation.identity import check_file_meta, check_identity
from scp_server.objects.validation.images import check_image
from scp_server.objects.validation.pixel_values import PixelValue
from scp_server.objects.validation.steps import (
    DEFAULT_LIMITS,
    Budget,
    BudgetExhausted,
    Steps,
    ValidationLimits,
    drained,
)
from scp_server.objects.validation.subject import Kind, Subject
from scp_server.objects.validation.threats import Volumes, check_threats


@dataclass(frozen=True, slots=True)
class Evidence:
    """What is known of an object beside its header; what is not known is not judged.

    `pixels` are what `PixelMeasure` found, `volumes` the sizes of images that a report may refer to.
    """

    file_meta: FileMeta | None = None
    pixels: tuple[PixelValue, ...] | None = None
    volumes: Volumes = field(default_factory=dict)


def validate(
    header: RawHeader, evidence: Evidence | None = None, limits: ValidationLimits = DEFAULT_LIMITS
) -> Report:
    """Judge an object. Raises nothing: see `validating`."""
    return drained(validating(header, evidence, limits))


def validating(
    header: RawHeader, evidence: Evidence | None = None, limits: ValidationLimits = DEFAULT_LIMITS
) -> Generator[None, None, Report]:
    """`validate` in steps of a millisecond or so, between which others may work; returns the report.

    What goes wrong inside is a finding: no object is lost to its validation.
    """
    findings = Findings(limits.max_findings)
    try:
        yield from _checks(header, evidence or Evidence(), findings, limits)
    except BudgetExhausted:
        findings.add(Code.NOT_EXAMINED, "The object has more elements than are looked at.")
    except Exception as error:
        # This is the boundary: a fault of a rule is told in the report, and the object is kept all the same.
        findings.add(Code.VALIDATOR_FAILED, f"The validation failed: a rule raised {type(error).__name__}.")
    return findings.report()


def _checks(header: RawHeader, evidence: Evidence, findings: Findings, limits: ValidationLimits) -> Steps:
    meta = evidence.file_meta
    subject = Subject.of(header, meta.sop_class_uid if meta else "")
    budget = Budget(limits)
    if header.truncated:
        sentence = f"Only the first {header.length_bytes} bytes of the header were looked at."
        findings.add(Code.NOT_EXAMINED, sentence)
    check_identity(subject, findings)
    if meta is not None:
        check_file_meta(subject, meta, findings)
    yield
    yield from check_attributes(subject, findings, budget)
    yield from check_image(subject, evidence.pixels, findings, budget)
    if subject.kind is Kind.TDR:
        yield from check_threats(subject, evidence.volumes, findings, budget)
    yield from check_elements(subject, findings, budget, limits)
