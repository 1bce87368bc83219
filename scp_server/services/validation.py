"""Objects are judged between their last byte and their commit, and when they are read again.

Whatever goes wrong with that, the object is kept: a rule that raises, takes too long, or never ends costs the
object nothing but a finding that says so, and a wait of at most `timeout_seconds`.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Generator
from dataclasses import dataclass, replace
from typing import Final

from scp_server.errors import OperationRefused
from scp_server.interfaces import PeerRules, ValidationPolicy
from scp_server.objects.header_tap import TapLimits
from scp_server.objects.raw_header import RawHeader
from scp_server.objects.uids import is_dicos_sop_class, transfer_syntax
from scp_server.objects.validation.finding import Code, Finding, Report, Severity
from scp_server.objects.validation.pixel_values import PixelMeasure, PixelValue
from scp_server.objects.validation.steps import DEFAULT_LIMITS, Steps, ValidationLimits
from scp_server.objects.validation.validator import Evidence, validating
from scp_server.observability.logs import get_logger
from scp_server.observability.measures import CallbackCounts, ReceptionMeasures
from scp_server.pipeline.stepping import DeadlinePassed
from scp_server.pipeline.threads import CallbackThreads, NoThreadLeft
from scp_server.protocol.events import Buffer
from scp_server.protocol.status import Status

log = get_logger(__name__)

Validate = Callable[[RawHeader, Evidence, ValidationLimits], Generator[None, None, Report]]

_OTHER_CLASS: Final = frozenset({Code.CLASS_CONTENT, Code.MODALITY})
"""What makes 0xA900 of a refusal: the data set is not of its SOP class (PS3.4 B.2.3)."""
_NOT_THE_OBJECTS_FAULT: Final = frozenset({Code.NOT_EXAMINED, Code.VALIDATOR_FAILED})
_TURN_SECONDS: Final = 0.001
"""How long a validation keeps the interpreter; giving it up with each step cost as much as the steps."""
_AT_LEAST: Final = {
    Severity.ERROR: frozenset({Severity.ERROR}),
    Severity.WARNING: frozenset({Severity.ERROR, Severity.WARNING}),
    Severity.INFO: frozenset(Severity),
}


@dataclass(frozen=True, slots=True)
class ValidationConfig:
    """Which objects are judged, and what follows from it."""

    dicos: ValidationPolicy = ValidationPolicy.OFF
    """For objects of DICOS's SOP classes."""
    medical: ValidationPolicy = ValidationPolicy.OFF
    """For all others."""
    titles: tuple[tuple[str | None, ValidationPolicy | None], ...] = ()
    """The peers' calling AE titles, None for any, in their order, with their own policy, None for none. For
    objects that are read again, of whose sender no more is known."""
    refuse_from: Severity = Severity.ERROR
    """The least severity that a policy refuses."""
    timeout_seconds: float = 5.0
    """How long an object waits for its validation."""
    max_findings: int = 100
    """Findings of one object that are kept; all are counted."""

    def policy(self, sop_class_uid: str, peer: PeerRules | None = None) -> ValidationPolicy:
        """What holds for an object of this class from this peer."""
        if peer is not None and peer.validation is not None:
            return peer.validation
        return self.dicos if is_dicos_sop_class(sop_class_uid) else self.medical

    def is_judged_again(self, sop_class_uid: str, calling_ae_title: str) -> bool:
        """Whether an object that is read again is judged."""
        for title, policy in self.titles:
            if title in (None, calling_ae_title):
                if policy is not None:
                    return policy is not ValidationPolicy.OFF
                break
        return self.policy(sop_class_uid) is not ValidationPolicy.OFF


class RefusedByFindings(OperationRefused):
    """An object that its peer's policy does not take; `quarantine` says whether it is kept there."""

    def __init__(self, finding: Finding, *, quarantine: bool) -> None:
        status = (
            Status.DATASET_DOES_NOT_MATCH_SOP_CLASS
            if finding.code in _OTHER_CLASS
            else Status.CANNOT_UNDERSTAND
        )
        super().__init__(status, finding.sentence, _last_tag(finding.path))
        self.quarantine = quarantine


def refusal_for(
    report: Report, policy: ValidationPolicy, refuse_from: Severity = Severity.ERROR
) -> RefusedByFindings | None:
    """The refusal that follows from a report, by its first finding that is severe enough; None where the
    object is kept, as are all that were not judged to the end."""
    if policy not in (ValidationPolicy.QUARANTINE, ValidationPolicy.REFUSE) or report.has_failed:
        return None
    for finding in report.findings:
        if finding.severity in _AT_LEAST[refuse_from] and finding.code not in _NOT_THE_OBJECTS_FAULT:
            return RefusedByFindings(finding, quarantine=policy is ValidationPolicy.QUARANTINE)
    return None


def _last_tag(path: str) -> tuple[int, ...]:
    """The tag that a finding's path, `(4010,1011)[2] > (4010,1010)`, ends in."""
    return (int(path[-10:-6] + path[-5:-1], 16),) if path else ()


class PixelEvidence:
    """Measures the pixel data of an object that is received, and fails for nobody but itself."""

    def __init__(self, transfer_syntax_uid: str, limits: TapLimits) -> None:
        self._measure: PixelMeasure | None = PixelMeasure(transfer_syntax(transfer_syntax_uid), limits=limits)

    def steps(self, data: Buffer) -> Steps:
        """Take the data set's next bytes."""
        if self._measure is None:
            return
        try:
            yield from self._measure.steps(data)
        except Exception:  # only the evidence is lost
            self._lose()

    def finish(self) -> tuple[PixelValue, ...] | None:
        """What `PixelMeasure.finish` says; None, too, where it failed."""
        try:
            return None if self._measure is None else self._measure.finish()
        except Exception:  # the same
            self._lose()
            return None

    def _lose(self) -> None:
        self._measure = None
        log.exception("validation.failed", error="the pixel data could not be measured")


class Validator:
    """Judges objects in threads of its own, `threads` of them at once.

    A thread cannot be ended: one whose object no longer waits ends with its step, and one that never ends is
    left alone. Once there are `threads` of those nothing is judged until one of them has ended.
    """

    def __init__(
        self,
        threads: int = 2,
        measures: ReceptionMeasures | None = None,
        validate: Validate = validating,
    ) -> None:
        self._measures = measures or ReceptionMeasures()
        self._validate = validate
        self._turns = asyncio.Semaphore(threads)
        self._threads = CallbackThreads("validation", CallbackCounts(), max_abandoned=threads)

    async def judge(
        self,
        header: RawHeader,
        pixels: tuple[PixelValue, ...] | None,
        config: ValidationConfig,
        log_fields: dict[str, object],
    ) -> Report:
        """Judge an object, of whose failures a finding tells. Raises nothing; may be cancelled."""
        given_up = threading.Event()
        limits = replace(DEFAULT_LIMITS, max_findings=config.max_findings)
        work = (self._validate, header, Evidence(pixels=pixels), limits, given_up)
        cause: Exception | None = None
        try:
            report = await self._in_turn(work, config.timeout_seconds)
        except DeadlinePassed:
            report = Report.of_failure(f"it took longer than {config.timeout_seconds:g} seconds")
        except NoThreadLeft:
            report = Report.of_failure("those before it have not ended")
        except Exception as error:  # the boundary: no object is lost to its validation
            cause = error
            report = Report.of_failure(type(error).__name__)
        finally:
            given_up.set()
        self._count(report, cause, log_fields)
        return report

    async def _in_turn(self, work: tuple[object, ...], seconds: float) -> Report:
        deadline = time.monotonic() + seconds
        try:
            async with asyncio.timeout(seconds):
                await self._turns.acquire()
        except TimeoutError:
            raise DeadlinePassed from None
        try:
            report = await self._threads.call(_judge, work, max(0.0, deadline - time.monotonic()))
        finally:
            self._turns.release()
        if not isinstance(report, Report):
            raise TypeError("a validation gave no report")
        return report

    def _count(self, report: Report, cause: Exception | None, log_fields: dict[str, object]) -> None:
        found = self._measures.findings
        found[Severity.ERROR] += report.errors
        found[Severity.WARNING] += report.warnings
        found[Severity.INFO] += report.infos
        if report.has_failed:
            self._measures.validator_failures += 1
            why = next(each.sentence for each in report.findings if each.code is Code.VALIDATOR_FAILED)
            log.error("validation.failed", error=why, exc_info=cause, **log_fields)

    def close(self) -> None:
        """Let the threads end."""
        self._threads.close()


def _judge(
    validate: Validate,
    header: RawHeader,
    evidence: Evidence,
    limits: ValidationLimits,
    given_up: threading.Event,
) -> Report:
    """Take all steps, in a thread. Between two of them the event loop gets the interpreter now and then."""
    steps = validate(header, evidence, limits)
    turn_ends = time.perf_counter() + _TURN_SECONDS
    while True:
        try:
            next(steps)
        except StopIteration as end:
            report: Report = end.value
            return report
        if given_up.is_set():
            return Report.of_failure("nobody waits for it any more")
        if time.perf_counter() > turn_ends:
            time.sleep(0)
            turn_ends = time.perf_counter() + _TURN_SECONDS


@dataclass(frozen=True, slots=True)
class StoredValidation:
    """How objects are judged that are read again: as when they came, without being refused."""

    validator: Validator
    config: ValidationConfig
