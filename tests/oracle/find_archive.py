"""Archives and queries made by chance, for comparing the server with `find_matcher`.

Values are few and alike, so that a query made from one object nearly matches many.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from scp_server.testing.dataset_encoder import DatasetEncoder, Element, TransferSyntax
from scp_server.testing.encoded_object import EncodedObject, make_uid
from tests.oracle.find_matcher import (
    COUNTS,
    DISTINCT,
    MODEL_LEVELS,
    NUMBER_VRS,
    UNIQUE,
    Asked,
    PlainDataset,
)

CT, MR, SR = "1.2.840.10008.5.1.4.1.1.2", "1.2.840.10008.5.1.4.1.1.4", "1.2.840.10008.5.1.4.1.1.88.11"
DICOS_CT, DICOS_TDR = "1.2.840.10008.5.1.4.1.1.501.1", "1.2.840.10008.5.1.4.1.1.501.3"
CHARACTER_SETS = {
    "": "ascii",
    "ISO_IR 100": "latin_1",
    "ISO_IR 144": "iso8859_5",
    "ISO_IR 192": "utf_8",
    "GB18030": "gb18030",
    "\\ISO 2022 IR 87": "iso2022_jp",
}
"""Specific Character Set, and Python's codec for it."""
SYNTAXES = (
    TransferSyntax.EXPLICIT_VR_LITTLE_ENDIAN,
    TransferSyntax.IMPLICIT_VR_LITTLE_ENDIAN,
    TransferSyntax.EXPLICIT_VR_BIG_ENDIAN,
)
PRIVATE_CREATOR, PRIVATE = 0x00290010, 0x00291001

VRS = {
    0x00080005: "CS",
    0x00080016: "UI",
    0x00080018: "UI",
    0x00080020: "DA",
    0x00080021: "DA",
    0x00080023: "DA",
    0x0008002A: "DT",
    0x00080030: "TM",
    0x00080031: "TM",
    0x00080033: "TM",
    0x00080050: "SH",
    0x00080060: "CS",
    0x00080061: "CS",
    0x00080062: "UI",
    0x00080070: "LO",
    0x00080080: "LO",
    0x00080090: "PN",
    0x00081010: "SH",
    0x00081030: "LO",
    0x0008103E: "LO",
    0x00081155: "UI",
    0x00100010: "PN",
    0x00100020: "LO",
    0x00100021: "LO",
    0x00100030: "DA",
    0x00100040: "CS",
    0x00104000: "LT",
    0x00180050: "DS",
    0x00181000: "LO",
    0x00081140: "SQ",
    0x00081150: "UI",
    0x00400275: "SQ",
    0x00400007: "LO",
    0x00400009: "SH",
    0x0020000D: "UI",
    0x0020000E: "UI",
    0x00200010: "SH",
    0x00200011: "IS",
    0x00200013: "IS",
    0x00200052: "UI",
    0x00280010: "US",
    PRIVATE_CREATOR: "LO",
    PRIVATE: "LO",
    0x40101042: "CS",
    0x40101048: "CS",
    0x40101027: "CS",
    0x40101031: "CS",
    0x4010102B: "DT",
    0x40101034: "US",
    0x40101011: "SQ",
    0x40101010: "US",
    0x40101038: "SQ",
    0x40101012: "CS",
    0x40101015: "CS",
    **dict.fromkeys(COUNTS, "IS"),
}
NAMES = (
    "Doe^Jane",
    "DOE^JANE^^",
    "Doe^Janet^M",
    "Doe",
    "Doering^Jan",
    "Müller^Jürgen",
    "MULLER^JURGEN",
    "Иванов^Иван",
    "Yamada^Tarou=山田^太郎=やまだ^たろう",
    "Yamada^Jirou=山田^二郎",
    "Wang^XiaoDong=王^小东",
    "O'Neil 100%^_x",
)
CHOICES: dict[int, tuple[str, ...]] = {
    0x00080020: ("20240229", "20240301", "20231231", "2024.03.01", "garbage"),
    0x00080021: ("20240229", "20240302"),
    0x00080023: ("20240229", "20240303"),
    0x00080030: ("10", "1030", "103015", "103015.25", "235959.999999", "10:30:15"),
    0x00080031: ("1200", "130000"),
    0x00080033: ("120001", "1300"),
    0x0008002A: ("20240229103015", "20240229103015.5", "20240229103015+0100", "20240229"),
    0x00080050: ("A1", "A10", "a1", "A_1", "A%1", "Ä1"),
    0x00080060: ("CT", "MR", "SR"),
    0x00080070: ("ACME", "ACME Inc", "Röntgen AG"),
    0x00080080: ("Mercy", "Mercy West", "Gate 7"),
    0x00080090: ("Smith^Ann", "smith^ann", "Müller^Jürgen"),
    0x00081010: ("ROOM1", "ROOM2"),
    0x00081030: ("Head CT", "head ct", "Thorax* [1]", "Schädel"),
    0x0008103E: ("Axial", "Axial 2", "Coronal?"),
    0x00100021: ("", "HOSP A"),
    0x00100030: ("19700102", "19700103", "1970.01.02"),
    0x00100040: ("F", "M", "O"),
    0x00104000: ("likes cats\\dogs", "plain text"),
    0x00180050: ("1.25", "1.250", "2"),
    0x00181000: ("123", "0123"),
    0x00200010: ("S1", "S2"),
    PRIVATE: ("secret", "Secret 2"),
}


@dataclass(frozen=True)
class Made:
    """A plain data set and its bytes."""

    plain: PlainDataset
    encoded: EncodedObject


def archive(seed: int, size: int = 40) -> list[Made]:
    """Some patients' studies, and some scans with their reports."""
    chance = random.Random(f"archive {seed}")
    return [_object(chance, seed, number) for number in range(size)]


def _object(chance: random.Random, seed: int, number: int) -> Made:
    patient = chance.randrange(5)
    study = f"{patient}.{chance.randrange(3)}"
    series = f"{study}.{chance.randrange(2)}"
    is_dicos = patient == 4
    character_set = chance.choice(["", "ISO_IR 100", "ISO_IR 192", *CHARACTER_SETS])
    codec = CHARACTER_SETS[character_set]
    plain: PlainDataset = {}
    sop_class = chance.choice([DICOS_CT, DICOS_TDR]) if is_dicos else chance.choice([CT, CT, MR, SR])
    plain[0x00080016] = ("UI", [sop_class])
    plain[0x00080018] = ("UI", [make_uid(f"find {seed} {number}")])
    plain[0x0020000D] = ("UI", [make_uid(f"find {seed} study {study}")])
    plain[0x0020000E] = ("UI", [make_uid(f"find {seed} series {series}")])
    if patient:
        plain[0x00100020] = ("LO", [f"P{patient % 3}"])
    if chance.random() < 0.9 and not is_dicos:
        plain[0x00100010] = ("PN", [_sayable(chance, NAMES, codec)])
    for tag, values in CHOICES.items():
        if chance.random() < 0.75:
            text = _sayable(chance, values, codec)
            several = "\\" in text and VRS[tag] not in ("LT", "ST", "UT")
            plain[tag] = (VRS[tag], text.split("\\") if several else [text] if text else [])
    if PRIVATE in plain:
        plain[PRIVATE_CREATOR] = ("LO", ["SCP TEST"])
    plain[0x00200011] = ("IS", [str(chance.randrange(3))])
    plain[0x00200013] = ("IS", [str(number % 7)])
    plain[0x00280010] = ("US", [chance.choice([64, 512])])
    if chance.random() < 0.5 and number:
        plain[0x00081140] = ("SQ", [{0x00081155: ("UI", [make_uid(f"find {seed} {number - 1}")])}])
    if chance.random() < 0.5:
        plain[0x00400275] = ("SQ", [_request(chance, codec) for _ in range(chance.randrange(3))])
    if is_dicos:
        _add_dicos(chance, plain, sop_class)
    if character_set:
        plain[0x00080005] = ("CS", character_set.split("\\"))
    return Made(plain, _encode(plain, chance.choice(SYNTAXES), codec))


def _request(chance: random.Random, codec: str) -> PlainDataset:
    item: PlainDataset = {0x00400009: ("SH", [chance.choice(["SPS1", "SPS2"])])}
    if chance.random() < 0.7:
        item[0x00400007] = ("LO", [_sayable(chance, ("Scan one", "Scan two", "Schädel"), codec)])
    return item


def _add_dicos(chance: random.Random, plain: PlainDataset, sop_class: str) -> None:
    plain[0x40101042] = ("CS", ["BAGGAGE"])
    plain[0x40101048] = ("CS", [chance.choice(["OPERATIONAL", "NON_OPERATIONAL"])])
    if sop_class == DICOS_TDR:
        plain[0x00080060] = ("CS", ["TDR"])
        plain[0x40101027] = ("CS", [chance.choice(["MACHINE", "OPERATOR", "GROUND TRUTH"])])
        plain[0x40101031] = ("CS", [chance.choice(["ALARM", "CLEAR"])])
        plain[0x4010102B] = ("DT", [chance.choice(["20240229103015.000000+0100", "20240301000000+0000"])])
        plain[0x40101034] = ("US", [chance.randrange(3)])
        plain[0x40101011] = ("SQ", [_threat(chance, n) for n in range(chance.randrange(3))])


def _threat(chance: random.Random, number: int) -> PlainDataset:
    assessment: PlainDataset = {
        0x40101012: ("CS", [chance.choice(["EXPLOSIVE", "PI", "ANOMALY"])]),
        0x40101015: ("CS", [chance.choice(["HIGH_THREAT", "THREAT", "NO_THREAT"])]),
    }
    return {0x40101010: ("US", [number]), 0x40101038: ("SQ", [assessment])}


def _sayable(chance: random.Random, values: tuple[str, ...], codec: str) -> str:
    return chance.choice([value for value in values if can_say(value, codec)])


def can_say(text: str, codec: str) -> bool:
    try:
        text.encode(codec)
    except UnicodeEncodeError:
        return False
    return True


def elements(plain: PlainDataset) -> list[Element]:
    """A plain data set for the encoder."""
    found = []
    for tag, (vr, values) in plain.items():
        if vr == "SQ":
            found.append(Element(tag, vr, [elements(item) for item in values], tag % 3 == 0))
        elif vr in NUMBER_VRS and values and not isinstance(values[0], str):
            found.append(Element(tag, vr, tuple(values)))
        else:
            found.append(Element(tag, vr, "\\".join(values)))
    return found


def _encode(plain: PlainDataset, syntax: TransferSyntax, codec: str) -> EncodedObject:
    dicos = plain[0x00080016][1][0].startswith("1.2.840.10008.5.1.4.1.1.501")
    return EncodedObject(
        sop_class_uid=plain[0x00080016][1][0],
        sop_instance_uid=plain[0x00080018][1][0],
        study_instance_uid=plain[0x0020000D][1][0],
        series_instance_uid=plain[0x0020000E][1][0],
        transfer_syntax_uid=syntax.value,
        dataset=DatasetEncoder(syntax, codec).encode(elements(plain)),
        dicos_version="V03" if dicos else "",
    )


# --- queries


ASKED = tuple(tag for tag in VRS if tag not in (0x00080005, 0x00081150, PRIVATE_CREATOR))
TOP_LEVEL = tuple(
    tag
    for tag in ASKED
    if tag not in (0x00400007, 0x00400009, 0x40101010, 0x40101038, 0x40101012, 0x40101015, PRIVATE)
)

DECISIONS = (0x40101027, 0x4010102B, 0x40101031)
"""Of a study or a patient these are those of the report that decides, by rules that the matcher lacks."""


def query(chance: random.Random, objects: list[Made]) -> Asked:
    """A query that one of the objects was the model for."""
    model = chance.choice(list(MODEL_LEVELS))
    level = chance.choice(MODEL_LEVELS[model])
    target = chance.choice(objects).plain
    keys: dict[int, tuple[str, object]] = {}
    relational = chance.random() < 0.5
    for higher in MODEL_LEVELS[model]:
        if higher == level:
            break
        if not relational or chance.random() < 0.5:
            keys[UNIQUE[higher]] = (VRS[UNIQUE[higher]], _value(target, UNIQUE[higher]))
    for tag in chance.sample(TOP_LEVEL, chance.randrange(1, 7)):
        if tag not in keys and not (tag in DECISIONS and level in ("PATIENT", "STUDY")):
            keys[tag] = (VRS[tag], _key(chance, tag, target, objects))
    if chance.random() < 0.15 and PRIVATE in target:
        keys[PRIVATE] = ("LO", _altered(chance, "LO", _value(target, PRIVATE)))
    keys.setdefault(UNIQUE[level], (VRS[UNIQUE[level]], ""))
    return Asked(
        model=model,
        level=level,
        keys=keys,
        relational=relational,
        combined=chance.random() < 0.4,
        fuzzy=chance.random() < 0.3,
        empty_values=chance.random() < 0.3,
        all_values=chance.random() < 0.3,
    )


def _value(plain: PlainDataset, tag: int) -> str:
    return "\\".join(str(value) for value in plain.get(tag, ("", []))[1])


def _key(chance: random.Random, tag: int, target: PlainDataset, objects: list[Made]) -> object:
    vr = VRS[tag]
    if tag in COUNTS:
        return chance.choice(["", "", "2"])
    if chance.random() < 0.3:
        return None if vr == "SQ" else "" if vr == "US" else chance.choice(["", "*"])
    if vr == "SQ":
        return _item_key(chance, tag, target)
    source = target if chance.random() < 0.8 else chance.choice(objects).plain
    if tag in DISTINCT:
        return _value(source, DISTINCT[tag])
    if tag == 0x00081155:
        return _value(chance.choice(objects).plain, 0x00080018)
    return _altered(chance, vr, _value(source, tag))


def _item_key(chance: random.Random, tag: int, target: PlainDataset) -> object:
    items = target.get(tag, ("SQ", []))[1]
    if not items:
        return {0x00400009: ("SH", "SPS1")} if tag == 0x00400275 else None
    item: PlainDataset = chance.choice(items)
    wanted = chance.sample(list(item), chance.randrange(1, len(item) + 1))
    keys: dict[int, tuple[str, object]] = {}
    for each in wanted:
        if VRS[each] == "SQ":
            keys[each] = ("SQ", _item_key(chance, each, item))
        else:
            keys[each] = (VRS[each], _altered(chance, VRS[each], _value(item, each)))
    return keys


def _altered(chance: random.Random, vr: str, text: str) -> str:
    """A key like a value: itself, with wild cards, a range, a list, in other case, or another."""
    if chance.random() < 0.05 and vr not in ("DA", "TM", "DT", "IS", "DS", "US", "UI"):
        return '""'
    if vr in ("DA", "TM", "DT"):
        return _range(chance, vr)
    if vr in ("UI", "IS", "DS", "US") or not text:
        return chance.choice([text, text, f"{text}\\{text}"]) if vr == "UI" and text else text
    if vr in ("AS", "AT"):
        return text
    place = chance.randrange(len(text))
    ways = [
        text,
        text,
        text[:place] + "*",
        text[:place] + "?" + text[place + 1 :],
        "*" + text[place:],
        text.swapcase(),
        f"{text}\\nobody",
        f"*{text[place]}*",
        text[:place] + "*" + text[-1],
    ]
    return chance.choice(ways)


def _range(chance: random.Random, vr: str) -> str:
    values = {
        "DA": ("20240229", "20240301", "20231231", "19700102", "2024.03.01"),
        "TM": ("10", "1030", "103015", "120000", "103015.25", "13"),
        "DT": ("20240229103015", "20240229", "20240229093015+0000", "20240301"),
    }[vr]
    low, high = sorted(chance.choices(values, k=2))
    return chance.choice([low, f"{low}-{high}", f"{low}-", f"-{high}", f"{high}-{low}"])


def query_character_set(chance: random.Random, asked: Asked) -> str:
    """One that can say every key."""
    texts = "".join(_texts(asked.keys))
    return chance.choice([name for name, codec in CHARACTER_SETS.items() if can_say(texts, codec)])


def _texts(keys: object) -> list[str]:
    if isinstance(keys, dict):
        return [text for _, value in keys.values() for text in _texts(value)]
    return [keys] if isinstance(keys, str) else []


def identifier(asked: Asked, character_set: str, syntax: TransferSyntax) -> bytes:
    """The query as a data set."""
    found = [Element(0x00080052, "CS", asked.level), *_key_elements(asked.keys)]
    if character_set:
        found.append(Element(0x00080005, "CS", character_set))
    if PRIVATE in asked.keys:
        found.append(Element(PRIVATE_CREATOR, "LO", "SCP TEST"))
    return DatasetEncoder(syntax, CHARACTER_SETS[character_set]).encode(found)


def _key_elements(keys: dict[int, tuple[str, object]]) -> list[Element]:
    found = []
    for tag, (vr, value) in keys.items():
        if vr == "SQ":
            found.append(Element(tag, vr, [_key_elements(value)] if isinstance(value, dict) else []))
        elif vr == "US" and value:
            found.append(Element(tag, vr, int(str(value))))
        else:
            found.append(Element(tag, vr, str(value)))
    return found
