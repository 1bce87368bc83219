"""A query answered the naive way: every object in a list, every rule as a sentence of PS3.4 C.2.2.2.

Written from the standard and `docs/query.md`, for comparing: no index, no early end, nothing shared with the
server. A data set is a dict of tags, a value a list: text, numbers, or data sets.
"""

from __future__ import annotations

import datetime
import re
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass, field

Element = tuple[str, list]  # type: ignore[type-arg]
PlainDataset = dict[int, Element]

SECOND = 1_000_000
LEVELS = ("PATIENT", "STUDY", "SERIES", "IMAGE")
UNIQUE = {"PATIENT": 0x00100020, "STUDY": 0x0020000D, "SERIES": 0x0020000E, "IMAGE": 0x00080018}
MODEL_LEVELS = {"patient": LEVELS, "study": LEVELS[1:], "patient/study": LEVELS[:2]}
TEXT_VRS = {"AE", "CS", "LO", "SH", "UC", "UR", "UT", "LT", "ST"}
ONE_VALUE_VRS = {"LT", "ST", "UT", "UR"}
NUMBER_VRS = {"IS", "DS", "US", "SS", "UL", "SL", "FL", "FD"}

NUMBERS = {0x00200011, 0x00200013, 0x00280010, 0x40101034}
LEVEL_OF = {
    **dict.fromkeys((0x00100010, 0x00100020, 0x00100021, 0x00100022, 0x00100030, 0x00100040), "PATIENT"),
    0x40101042: "PATIENT",
    **dict.fromkeys((0x00080020, 0x00080030, 0x00080050, 0x00080090, 0x00081030), "STUDY"),
    **dict.fromkeys((0x0020000D, 0x00200010, 0x40101048), "STUDY"),
    **dict.fromkeys((0x00080021, 0x00080031, 0x00080060, 0x00080070, 0x00080080, 0x00081010), "SERIES"),
    **dict.fromkeys((0x0008103E, 0x00081090, 0x00180015, 0x00181000, 0x00181030, 0x0020000E), "SERIES"),
    **dict.fromkeys((0x00200011, 0x40101044), "SERIES"),
    **dict.fromkeys((0x00080016, 0x00080018, 0x00080023, 0x00080033, 0x0008002A, 0x00200013), "IMAGE"),
    **dict.fromkeys((0x00200052, 0x00280008, 0x00280010, 0x00280011, 0x00280100), "IMAGE"),
    **dict.fromkeys((0x40101024, 0x40101027, 0x4010102B, 0x40101031, 0x40101033, 0x40101034), "IMAGE"),
    0x4010103A: "IMAGE",
}
"""Attributes that belong to a level; whatever else is asked for is looked up in the first instance."""
COUNTS = {
    0x00201200: ("PATIENT", "STUDY"),
    0x00201202: ("PATIENT", "SERIES"),
    0x00201204: ("PATIENT", "IMAGE"),
    0x00201206: ("STUDY", "SERIES"),
    0x00201208: ("STUDY", "IMAGE"),
    0x00201209: ("SERIES", "IMAGE"),
}
DISTINCT = {0x00080061: 0x00080060, 0x00080062: 0x00080016}
PAIRS = ((0x00080020, 0x00080030), (0x00080021, 0x00080031), (0x00080023, 0x00080033))


@dataclass(frozen=True)
class Asked:
    """One query. A key's value is its text, or for a sequence its item (None: universal)."""

    model: str
    level: str
    keys: dict[int, tuple[str, object]]
    relational: bool = False
    combined: bool = False
    fuzzy: bool = False
    empty_values: bool = False
    all_values: bool = False


@dataclass
class Entity:
    """What a level has one of: its objects in the order they came."""

    objects: list[Stored] = field(default_factory=list)

    @property
    def first(self) -> PlainDataset:
        return self.objects[0].dataset


@dataclass
class Stored:
    """One object and the names of the entities it belongs to."""

    dataset: PlainDataset
    names: dict[str, tuple[str, ...]]


def stored(datasets: Iterable[PlainDataset]) -> list[Stored]:
    """Place objects: a study keeps the patient of its first object, an instance the series of its first."""
    patients: dict[str, tuple[str, ...]] = {}
    places: dict[str, tuple[str, str]] = {}
    found = []
    for dataset in datasets:
        study, series, instance = (text_of(dataset, UNIQUE[level]) for level in LEVELS[1:])
        study, series = places.setdefault(instance, (study, series))
        identity = (text_of(dataset, 0x00100020), text_of(dataset, 0x00100021))
        patient = patients.setdefault(study, identity if identity[0] else (*identity, study))
        names = {
            "PATIENT": patient,
            "STUDY": (study,),
            "SERIES": (study, series),
            "IMAGE": (instance,),
        }
        found.append(Stored(dataset, names))
    return found


def text_of(dataset: PlainDataset, tag: int) -> str:
    values = dataset.get(tag, ("", []))[1]
    return str(values[0]).strip() if values else ""


def answer(archive: list[Stored], asked: Asked) -> dict[tuple[str, ...], dict[int, list[object]]]:
    """The entities that match, by name, with the values of the keys that were asked for."""
    entities: dict[str, dict[tuple[str, ...], Entity]] = {level: {} for level in LEVELS}
    for each in archive:
        for level in LEVELS:
            entities[level].setdefault(each.names[level], Entity()).objects.append(each)
    matches = {}
    for name, entity in entities[asked.level].items():
        values = {tag: values_of(entities, entity, asked.level, tag) for tag in asked.keys}
        if all(is_match(asked, tag, values) for tag in asked.keys):
            matches[name] = {tag: found for tag, found in values.items() if found is not None}
    return matches


def broken_rule(asked: Asked) -> tuple[int, int] | None:
    """The status and the tag that a query is refused with (PS3.4 C.4.1.2.1, C.6.2)."""
    levels = MODEL_LEVELS[asked.model]
    if asked.level not in levels:
        return 0xA900, 0x00080052
    if asked.relational:
        return None
    for higher in levels[: levels.index(asked.level)]:
        value = str(asked.keys.get(UNIQUE[higher], ("", ""))[1])
        wild = higher == "PATIENT" and ("*" in value or "?" in value)
        if not value or value == "*" or wild or len(set(value.split("\\"))) > 1:
            return 0xA900, UNIQUE[higher]
    return None


def values_of(
    entities: dict[str, dict[tuple[str, ...], Entity]], entity: Entity, level: str, tag: int
) -> list[object] | None:
    """What the entity has for a key; None where the key is not supported."""
    names = entity.objects[0].names
    if tag in COUNTS:
        of, what = COUNTS[tag]
        if LEVELS.index(of) > LEVELS.index(level):
            return None
        return [len({each.names[what] for each in entities[of][names[of]].objects})]
    if tag in DISTINCT:
        attribute = DISTINCT[tag]
        if LEVELS.index(LEVEL_OF[attribute]) <= LEVELS.index(level):
            return None
        return distinct(entities, entity, attribute)
    if tag == 0x00081155:
        found: set[object] = {uid for each in firsts(entities, entity, "IMAGE") for uid in references(each)}
        return sorted(found, key=str)
    owner = LEVEL_OF.get(tag)
    if owner is None or LEVELS.index(owner) == LEVELS.index(level):
        return list(entity.first.get(tag, ("", []))[1])
    if LEVELS.index(owner) < LEVELS.index(level):
        return list(entities[owner][names[owner]].first.get(tag, ("", []))[1])
    return None if tag in UNIQUE.values() else distinct(entities, entity, tag)


def firsts(
    entities: dict[str, dict[tuple[str, ...], Entity]], entity: Entity, level: str
) -> list[PlainDataset]:
    """The first data set of everything of one level below an entity; every part, of instances."""
    if level == "IMAGE":
        return [each.dataset for each in entity.objects]
    return [entities[level][name].first for name in {each.names[level]: 0 for each in entity.objects}]


def distinct(entities: dict[str, dict[tuple[str, ...], Entity]], entity: Entity, tag: int) -> list[object]:
    level = LEVEL_OF[tag]
    below = {each.names[level]: 0 for each in entity.objects}
    found: dict[object, None] = {}
    for name in below:
        vr, values = entities[level][name].first.get(tag, ("", []))
        for value in values:
            day = read_date(str(value)) if vr == "DA" else None
            found[f"{day:%Y%m%d}" if day else value] = None
    if tag in NUMBERS:
        return sorted(found, key=lambda value: int(str(value)))
    return sorted(found, key=str)


def references(dataset: PlainDataset) -> set[str]:
    """Every Referenced SOP Instance UID in the sequences that refer to instances."""
    found = set()
    for tag in (0x00081140, 0x00082112):
        for item in dataset.get(tag, ("SQ", []))[1]:
            found.add(text_of(item, 0x00081155))
    for threat in dataset.get(0x40101011, ("SQ", []))[1]:
        for representation in threat.get(0x40101037, ("SQ", []))[1]:
            for item in representation.get(0x0008114A, ("SQ", []))[1]:
                found.add(text_of(item, 0x00081155))
    return {uid for uid in found if uid}


def is_match(asked: Asked, tag: int, values: dict[int, list[object] | None]) -> bool:
    """Whether one key matches, or is of those that are not compared."""
    vr, key = asked.keys[tag]
    found = values[tag]
    if found is None or tag in COUNTS:
        return True
    owner = LEVEL_OF.get(tag)
    if owner is not None and not asked.relational and not compared(asked, owner, tag):
        return True
    if asked.combined:
        for date, time in PAIRS:
            if tag in (date, time) and date in asked.keys and time in asked.keys:
                span = combined_span(str(asked.keys[date][1]), str(asked.keys[time][1]))
                if span is not None:
                    return in_span(span, values[date] or [], values[time] or [])
    return value_matches(vr, key, found, asked)


def compared(asked: Asked, owner: str, tag: int) -> bool:
    """At baseline only unique keys of higher levels are compared, and a patient's issuer."""
    levels = MODEL_LEVELS[asked.model]
    if owner == "PATIENT" and owner not in levels:
        owner = levels[0]  # C.6.2.1: there, a study has its patient's attributes
    if LEVELS.index(owner) >= LEVELS.index(asked.level):
        return True
    return tag == UNIQUE[owner] or (tag == 0x00100021 and levels[0] == "PATIENT")


# --- C.2.2.2: one key against the values of one attribute


def value_matches(vr: str, key: object, found: list[object], asked: Asked) -> bool:
    if vr == "SQ":
        if not key:  # C.2.2.2.6: no item, or one without keys
            return True
        assert isinstance(key, dict)
        wanted = {tag: each for tag, each in key.items() if not is_universal(each[0], each[1])}
        if not wanted:
            return True
        return any(
            all(
                value_matches(each_vr, each, list(item.get(tag, ("", []))[1]), asked)
                for tag, (each_vr, each) in wanted.items()
            )
            for item in found
            if isinstance(item, dict)
        )
    text = str(key)
    if is_universal(vr, text):
        return True
    if asked.empty_values and text == '""':
        return not found
    if not found:
        return False
    wanted_values = [text] if vr in ONE_VALUE_VRS else text.split("\\")
    combine = all if asked.all_values and vr not in ("UI", "DA", "TM", "DT") else any
    return combine(any(one_matches(vr, each, value, asked) for value in found) for each in wanted_values)


def is_universal(vr: str, key: object) -> bool:
    """C.2.2.2.3, C.2.2.2.4. A name of nothing but empty components says nothing."""
    if vr == "SQ":
        return not key or (isinstance(key, dict) and all(is_universal(*each) for each in key.values()))
    return not str(key).strip().strip("*^=" if vr == "PN" else "*")


def one_matches(vr: str, key: str, value: object, asked: Asked) -> bool:
    if vr == "PN":
        return name_matches(key, str(value), asked.fuzzy)
    if vr in TEXT_VRS:
        return wildcard(normal(key), normal(str(value)))
    if vr == "DA":
        day = read_date(str(value))
        return day is not None and within(day, key, lambda text: (read_date(text),) * 2)
    if vr == "TM":
        time = read_time(str(value))
        return time is not None and within(time[0], key, lambda text: read_time(text) or (None, None))
    if vr == "DT":
        moment = read_moment(str(value))
        return moment is not None and within(moment[0], key, lambda text: read_moment(text) or (None, None))
    if vr in NUMBER_VRS:
        return float(key) == float(str(value))
    return key.strip(" \0") == str(value).strip(" \0")  # UI, AS, AT


def normal(text: str) -> str:
    return unicodedata.normalize("NFC", text).strip(" \0")


def wildcard(pattern: str, text: str) -> bool:
    """C.2.2.2.4."""
    expression = "".join({"*": ".*", "?": "."}.get(c, re.escape(c)) for c in pattern)
    return re.fullmatch(expression, text, re.DOTALL) is not None


def name_matches(key: str, value: str, fuzzy: bool) -> bool:
    if fuzzy and fuzzily(key, value):
        return True
    stored = [folded(group) for group in value.split("=")]
    wanted = [folded(group) for group in key.split("=")]
    if len([group for group in wanted if group]) == 1 and len(wanted) == 1:
        return any(group_matches(wanted[0], group) for group in stored)
    return all(
        group_matches(group, stored[place] if place < len(stored) else "")
        for place, group in enumerate(wanted)
        if group
    )


def fuzzily(key: str, value: str) -> bool:
    """Every word of the key begins a word of the name, whatever the case, the accents and the order."""
    asked = words(key, "*?")
    return bool(asked) and all(any(wildcard(f"{each}*", word) for word in words(value)) for each in asked)


def words(text: str, also: str = "") -> list[str]:
    decomposed = unicodedata.normalize("NFKD", text)
    bare = unicodedata.normalize("NFC", "".join(c for c in decomposed if not 0x300 <= ord(c) <= 0x36F))
    return "".join(c if c.isalnum() or c in also else " " for c in bare.casefold()).split()


def folded(group: str) -> str:
    return unicodedata.normalize("NFKC", group).casefold().strip().rstrip("^ ")


def group_matches(pattern: str, group: str) -> bool:
    while group.count("^") < pattern.count("^"):
        group += "^"
    return wildcard(pattern, group)


def within(moment, key, read) -> bool:  # type: ignore[no-untyped-def]
    """C.2.2.2.5: a single value means the whole span of its precision."""
    low, high = key.split("-") if "-" in key else (key, key)
    first = read(low)[0] if low else None
    last = read(high)[1] if high else None
    return (first is None or first <= moment) and (last is None or moment <= last)


def read_date(text: str) -> datetime.date | None:
    try:
        return datetime.datetime.strptime(text.strip().replace(".", ""), "%Y%m%d").date()
    except ValueError:
        return None


def read_time(text: str) -> tuple[int, int] | None:
    """The first and the last microsecond of a day that a TM means."""
    digits = text.strip().replace(":", "")
    match = re.fullmatch(r"(\d\d)(\d\d)?(\d\d)?(?:\.(\d{1,6}))?", digits)
    if match is None:
        return None
    hour, minute, second, fraction = match.groups()
    if int(hour) > 23 or int(minute or 0) > 59 or int(second or 0) > 59:
        return None
    begin = (int(hour) * 3600 + int(minute or 0) * 60 + int(second or 0)) * SECOND
    begin += int((fraction or "").ljust(6, "0"))
    length = 10 ** (6 - len(fraction)) if fraction else SECOND * (1 if second else 60 if minute else 3600)
    return begin, begin + length - 1


def read_moment(text: str) -> tuple[int, int] | None:
    """A DT in microseconds, taken for UTC where it has no zone."""
    match = re.fullmatch(r"(\d{8})(\d{6}(?:\.\d{1,6})?)?(?:\+(\d\d)(\d\d))?", text.strip())
    if match is None:
        return None
    day = read_date(match[1])
    if day is None:
        return None
    shift = (int(match[3]) * 60 + int(match[4])) * 60 if match[3] else 0
    time = read_time(match[2]) if match[2] else (0, 86_400 * SECOND - 1)
    if time is None:
        return None
    base = (day.toordinal() * 86_400 - shift) * SECOND
    return base + time[0], base + time[1]


Span = tuple[tuple[datetime.date, int] | None, tuple[datetime.date, int] | None]


def combined_span(date_key: str, time_key: str) -> Span | None:
    """C.2.2.2.5.4: two ranges mean one span from the first date and time to the last."""
    if "-" not in date_key or "-" not in time_key:
        return None
    (first_date, last_date), (first_time, last_time) = date_key.split("-"), time_key.split("-")
    begin, end = read_date(first_date), read_date(last_date)
    first = (begin, (read_time(first_time) or (0, 0))[0]) if begin else None
    last = (end, (read_time(last_time) or (0, 86_400 * SECOND))[1]) if end else None
    return first, last


def in_span(span: Span, dates: list[object], times: list[object]) -> bool:
    date = read_date(str(dates[0])) if dates else None
    time = read_time(str(times[0])) if times else None
    if date is None or time is None:
        return False
    moment = (date, time[0])
    return (span[0] is None or span[0] <= moment) and (span[1] is None or moment <= span[1])
