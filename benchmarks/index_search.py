"""How long searches of the index take, by kind, in an index of N instances.

Run from the repository's top: `python -m benchmarks.index_search [--instances N] [--plans]`.
The rows are written by the driver alone: 200 instances to a study of two series, every hundredth of them a
report. For each kind: searches a second of 1 and of 8 tasks, the processor's time for one of the latter, how
long the first page and all of them take, and the number found. `--plans` prints SQLite's plans instead.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sqlite3
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from sqlalchemy.dialects import sqlite

from scp_server.index.search import Condition, Entity, EntityLevel, Search
from scp_server.index.search_shape import take_apart
from scp_server.index.search_sql import statements
from scp_server.index.store import IndexConfig, SqlIndex
from scp_server.objects.matching_hints import AnyOf, Between, Contains, Hint

INSTANCES_PER_STUDY = 200
INSTANCES_PER_REPORT = 100
HEADER_BYTES = 700
_SECONDS = 2.0
_PATIENT, _STUDY, _SERIES, _INSTANCE = EntityLevel
_CT, _TDR = "1.2.840.10008.5.1.4.1.1.501.1", "1.2.840.10008.5.1.4.1.1.501.3"
_NAMES = ("doe", "miller", "garcia", "yamada", "novak", "rossi", "dubois", "jansen")


def fill(path: Path, instances: int) -> None:
    """Write the rows of so many instances into a new, migrated database."""
    database = sqlite3.connect(path, isolation_level=None)
    database.execute("PRAGMA synchronous = OFF")
    database.execute("PRAGMA cache_size = -200000")
    header = os.urandom(HEADER_BYTES)
    key = 0
    for study in range(-(-instances // INSTANCES_PER_STUDY)):
        database.execute("BEGIN")
        patient_key, study_key, series_keys = key + 1, key + 2, (key + 3, key + 4)
        key += 4
        _insert_study(database, study, patient_key, study_key, series_keys)
        rows: dict[str, list[tuple[object, ...]]] = {"instances": [], "parts": [], "headers": [], "refs": []}
        for number in range(INSTANCES_PER_STUDY):
            key += 1
            report = number % INSTANCES_PER_REPORT == INSTANCES_PER_REPORT - 1
            uid = f"1.2.3.{study}.{number}"
            alarm = "ALARM" if study % 50 == 0 else "CLEAR"
            rows["instances"].append(
                (key, series_keys[report], _TDR if report else _CT, uid, number)
                + ((alarm, f"202401{study % 28 + 1:02}120000", "\\EXPLOSIVE\\") if report else (None,) * 3)
            )
            location = f"{study:06}/{number:06}.dcm"
            rows["parts"].append((key, key, uid.encode(), location))
            rows["headers"].append((key, header))
            if report:
                rows["refs"].append((key, f"1.2.3.{study}.0"))
        _insert_instances(database, rows)
        database.execute("COMMIT")
    database.execute("INSERT OR REPLACE INTO key_allocation VALUES ('keys', ?)", (key + 1,))
    database.close()


def _insert_study(
    database: sqlite3.Connection, study: int, patient_key: int, study_key: int, series_keys: tuple[int, int]
) -> None:
    name = f"{_NAMES[study % len(_NAMES)]}^{study}"
    database.execute(
        "INSERT INTO patients (patient_key, patient_id, issuer_of_patient_id,"
        " unidentified_study_instance_uid, patient_name, patient_name_folded) VALUES (?, ?, '', '', ?, ?)",
        (patient_key, f"P{study}", name.upper(), f"={name}="),
    )
    database.execute(
        "INSERT INTO studies (study_key, patient_key, study_instance_uid, study_date, study_time,"
        " accession_number, study_id) VALUES (?, ?, ?, ?, '120000', ?, ?)",
        (study_key, patient_key, f"1.2.3.{study}", _day(study), f"A{study}", f"S{study}"),
    )
    for number, series_key in enumerate(series_keys):
        database.execute(
            "INSERT INTO series (series_key, study_key, series_instance_uid, modality, series_number,"
            " station_name) VALUES (?, ?, ?, ?, ?, ?)",
            (series_key, study_key, f"1.2.3.{study}.9.{number}", ("CT", "TDR")[number], number, "LANE1"),
        )


def _insert_instances(database: sqlite3.Connection, rows: dict[str, list[tuple[object, ...]]]) -> None:
    database.executemany(
        "INSERT INTO instances (instance_key, series_key, sop_class_uid, sop_instance_uid, instance_number,"
        " alarm_decision, alarm_decision_time, threat_categories) VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
        rows["instances"],
    )
    database.executemany(
        "INSERT INTO parts (part_key, instance_key, part_number, digest_algorithm, digest,"
        " transfer_syntax_uid, location, size_bytes, dataset_offset_bytes, arrival_id, received_at_ns,"
        " calling_ae_title, called_ae_title) VALUES (?, ?, 1, 'blake3', ?, '1.2.840.10008.1.2.1', ?, 525000,"
        " 340, '0', 0, 'SCANNER', 'SCP_SERVER')",
        rows["parts"],
    )
    database.executemany("INSERT INTO headers VALUES (?, ?)", rows["headers"])
    database.executemany("INSERT INTO instance_references VALUES (?, ?)", rows["refs"])


def _search(level: EntityLevel, hints: dict[str, Hint], *below: str, header: bool = False) -> Search:
    conditions = tuple(Condition(column, hint) for column, hint in hints.items())
    return Search(level, conditions, frozenset(below), with_header=header)


def _one(text: str) -> Hint:
    return AnyOf((text,))


def _day(study: int) -> str:
    return f"20{study // 336 % 24:02}{study // 28 % 12 + 1:02}{study % 28 + 1:02}"


def _week_of(study: int) -> Hint:
    return Between(_day(study)[:6] + "01", _day(study)[:6] + "07")


KINDS: dict[str, Callable[[int], Search]] = {
    "a patient by Patient ID": lambda n: _search(_PATIENT, {"patient_id": _one(f"P{n}")}),
    "the studies of a Patient ID": lambda n: _search(
        _STUDY, {"patient_id": _one(f"P{n}")}, "modality", header=True
    ),
    "a study by Accession Number": lambda n: _search(_STUDY, {"accession_number": _one(f"A{n}")}, "modality"),
    "Study Date range and Modality": lambda n: _search(
        _STUDY, {"study_date": _week_of(n), "modality": _one("CT")}, "modality"
    ),
    "a study's series": lambda n: _search(_SERIES, {"study_instance_uid": _one(f"1.2.3.{n}")}, header=True),
    "a series' instances": lambda n: _search(
        _INSTANCE,
        {"study_instance_uid": _one(f"1.2.3.{n}"), "series_instance_uid": _one(f"1.2.3.{n}.9.0")},
    ),
    "the same with headers": lambda n: _search(
        _INSTANCE,
        {"study_instance_uid": _one(f"1.2.3.{n}"), "series_instance_uid": _one(f"1.2.3.{n}.9.0")},
        header=True,
    ),
    "an instance by UID": lambda n: _search(_INSTANCE, {"sop_instance_uid": _one(f"1.2.3.{n}.7")}),
    "reports on an image": lambda n: _search(
        _INSTANCE, {"referenced_sop_instance_uid": _one(f"1.2.3.{n}.0")}
    ),
    "names DOE^9*": lambda n: _search(_STUDY, {"patient_name_folded": Contains("=doe^9")}),
    "studies with an alarm": lambda n: _search(_STUDY, {"alarm_decision": _one("ALARM")}),
    "reports of an alarm": lambda n: _search(_INSTANCE, {"alarm_decision": _one("ALARM")}),
    "studies with SOP Class TDR": lambda n: _search(_STUDY, {"sop_class_uid": _one(_TDR)}),
    "all studies": lambda n: _search(_STUDY, {}, "modality"),
    "all instances": lambda n: _search(_INSTANCE, {}),
}


async def _run_all(index: SqlIndex, search: Search) -> tuple[float, float, int]:
    """Seconds to the first page and to the last, and how many were found."""
    started = time.perf_counter()
    first, count = 0.0, 0
    async for page in index.search(search, _judge):
        first = first or time.perf_counter() - started
        count += len(page)
    return first, time.perf_counter() - started, count


def _judge(entity: Entity) -> int:
    return entity.key


async def _rate(
    index: SqlIndex, kind: Callable[[int], Search], studies: int, tasks: int
) -> tuple[float, float]:
    """Searches a second by so many tasks, and seconds of the processor for each."""
    done = 0
    end = time.perf_counter() + _SECONDS
    started, processor = time.perf_counter(), time.process_time()

    async def searcher(number: int) -> None:
        nonlocal done
        while time.perf_counter() < end:
            await _run_all(index, kind(number * 7919 % studies))
            number += tasks
            done += 1

    await asyncio.gather(*(searcher(number) for number in range(tasks)))
    return done / (time.perf_counter() - started), (time.process_time() - processor) / done


async def run(path: Path, instances: int, readers: int) -> None:
    """Print one line for each kind."""
    index = SqlIndex(IndexConfig(path, readers=readers))
    await index.open()
    studies = instances // INSTANCES_PER_STUDY
    print(f"{instances} instances, {readers=}")
    print(f"{'':32}{'1 task/s':>9} {'8 tasks/s':>9} {'CPU ms':>7} {'first ms':>8} {'all ms':>9} {'found':>8}")
    for name, kind in KINDS.items():
        first, whole, count = await _run_all(index, kind(17))
        figures = f"{first * 1e3:>8.2f} {whole * 1e3:>9.2f} {count:>8}"
        if whole > _SECONDS:
            print(f"{name:32}{'':>27} {figures}")
            continue
        one, _ = await _rate(index, kind, studies, 1)
        eight, processor = await _rate(index, kind, studies, 8)
        print(f"{name:32}{one:>9.0f} {eight:>9.0f} {processor * 1e3:>7.2f} {figures}")
    await index.close()


def print_plans(path: Path) -> None:
    """How SQLite finds the keys for each kind."""
    database = sqlite3.connect(path)
    dialect = sqlite.dialect()
    for name, kind in KINDS.items():
        shape, parameters = take_apart(kind(17))
        find = statements(shape, dialect).find
        values = find.values({**parameters, "after": 0, "until": 1 << 62, "limit": 32})
        print(name)
        for row in database.execute(f"EXPLAIN QUERY PLAN {find.text}", values):
            print(f"    {row[3]}")
    database.close()


async def _make(path: Path, instances: int) -> None:
    index = SqlIndex(IndexConfig(path))
    await index.open()
    await index.close()
    fill(path, instances)


def main() -> None:
    """Read the options and run in a temporary folder."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--directory", type=Path, help="where the temporary folder is made")
    parser.add_argument("--instances", type=int, default=20_000)
    parser.add_argument("--readers", type=int, default=2)
    parser.add_argument("--plans", action="store_true", help="print SQLite's plans and nothing else")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.directory) as directory:
        path = Path(directory) / "index.sqlite"
        asyncio.run(_make(path, options.instances))
        if options.plans:
            print_plans(path)
        else:
            asyncio.run(run(path, options.instances, options.readers))


if __name__ == "__main__":
    main()
