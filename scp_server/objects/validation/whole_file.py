"""Validation of a whole Part 10 file that is read piece by piece."""

from __future__ import annotations

from collections.abc import Generator
from typing import TYPE_CHECKING

from scp_server.errors import UnreadableDataset
from scp_server.objects.header_tap import DEFAULT_LIMITS as DEFAULT_TAP_LIMITS
from scp_server.objects.header_tap import HeaderTap, TapLimits
from scp_server.objects.part10 import MAX_FILE_META_BYTES, FileMeta, read_file_meta
from scp_server.objects.uids import transfer_syntax
from scp_server.objects.validation.finding import Code, Findings, Path, Report
from scp_server.objects.validation.pixel_values import PixelMeasure
from scp_server.objects.validation.steps import DEFAULT_LIMITS, Steps, ValidationLimits, drained
from scp_server.objects.validation.threats import Volumes
from scp_server.objects.validation.validator import Evidence, validating

if TYPE_CHECKING:
    from scp_server.protocol.events import Buffer


class FileValidation:
    """Judges one file. Give it every piece with `steps`, then iterate `finishing`, which returns the report.

    It raises nothing: what cannot be read is a finding. At most 1 MiB of the file is held, and its header
    within the bounds of `tap_limits`.
    """

    def __init__(
        self,
        size_bytes: int,
        limits: ValidationLimits = DEFAULT_LIMITS,
        tap_limits: TapLimits = DEFAULT_TAP_LIMITS,
    ) -> None:
        self._size_bytes = size_bytes
        self._limits = limits
        self._tap_limits = tap_limits
        self._beginning = bytearray()
        self._meta: FileMeta | None = None
        self._tap: HeaderTap | None = None
        self._measure: PixelMeasure | None = None
        self._unreadable: tuple[str, tuple[int, ...]] | None = None

    def steps(self, data: Buffer) -> Steps:
        """Take the file's next bytes."""
        if self._unreadable is not None:
            return
        if self._tap is None:
            self._beginning += data
            if len(self._beginning) >= min(self._size_bytes, MAX_FILE_META_BYTES):
                yield from self._begin()
        else:
            yield from self._take(data)

    def finish(self, volumes: Volumes | None = None) -> Report:
        """`finishing`, at once."""
        return drained(self.finishing(volumes))

    def finishing(self, volumes: Volumes | None = None) -> Generator[None, None, Report]:
        """The file has ended."""
        if self._unreadable is None and self._tap is None:
            yield from self._begin()
        if self._unreadable is None and self._tap is not None:
            try:
                self._tap.finish()
            except UnreadableDataset as error:
                self._fail(error)
        if self._unreadable is not None or self._tap is None or self._measure is None:
            return self._unreadable_report()
        evidence = Evidence(self._meta, self._measure.finish(), volumes or {})
        return (yield from validating(self._tap.header, evidence, self._limits))

    def _begin(self) -> Steps:
        beginning, self._beginning = bytes(self._beginning), bytearray()
        try:
            self._meta = read_file_meta(beginning)
        except ValueError as error:
            self._unreadable = str(error), ()
            return
        offset = self._meta.dataset_offset_bytes
        self._tap = HeaderTap(self._meta.transfer_syntax_uid, self._tap_limits)
        self._measure = PixelMeasure(
            transfer_syntax(self._meta.transfer_syntax_uid), self._size_bytes - offset, self._tap_limits
        )
        yield from self._take(memoryview(beginning)[offset:])

    def _take(self, data: Buffer) -> Steps:
        if self._tap is None or self._measure is None:
            return
        try:
            yield from self._tap.steps(data)
        except UnreadableDataset as error:
            self._fail(error)
            return
        yield from self._measure.steps(data)

    def _fail(self, error: UnreadableDataset) -> None:
        self._unreadable = str(error), tuple(error.offending_elements)

    def _unreadable_report(self) -> Report:
        findings = Findings(self._limits.max_findings)
        why, tags = self._unreadable or ("it has no data set", ())
        path = Path(tags[0]) if tags else None
        findings.add(Code.UNREADABLE, f"The file cannot be read: {why}.", path)
        return findings.report()
