"""The conformance statement as a Markdown page, made from `conformance.statement`.

`python -m scp_server.runtime.conformance_page` writes `docs/conformance.md`, that of the defaults.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from scp_server.runtime.conformance import Statement, statement
from scp_server.settings import Settings

_INTRODUCTION = """\
What this server offers and does under one configuration (PS3.2). `scp-server conformance` prints it for any \
other: everything here is made from the tables that the server works with and from its settings, and a test \
asks a running server for each claim about queries. What queries mean where DICOM leaves a choice is in \
`docs/query.md`, every setting in `docs/settings.md`."""
_BY_AGREEMENT = "agreed on in extended negotiation"


def page(said: Statement) -> str:
    """The page, from what `statement` gave."""
    parts = [
        "# Conformance statement",
        _INTRODUCTION,
        *_implementation(said),
        *_association(said),
        *_storage(said["storage"]),
        *_query(said["query"]),
        "## Character sets",
        "Text is read and written in: "
        + ", ".join(f"`{term}`" for term in said["character_sets"])
        + ". An answer is in the request's where that can say everything, and in `ISO_IR 192` otherwise.",
        "## Limits and timers",
        _table(
            ("setting", "value", "meaning"),
            ((f"`{one['setting']}`", one["value"], one["meaning"]) for one in said["bounds"]),
        ),
        "## Not supported",
        "\n".join(f"- {one}" for one in said["not_supported"]),
        "## Storage SOP classes",
        _table(("SOP class", "UID"), ((one["name"], one["uid"]) for one in said["storage"]["sop_classes"])),
    ]
    return "\n\n".join(parts) + "\n"


def _implementation(said: Statement) -> list[str]:
    one = said["implementation"]
    called = said["called_ae_titles"]
    rows = [
        ("product", f"{one['name']} {one['version']}"),
        ("Implementation Class UID", one["implementation_class_uid"]),
        ("Implementation Version Name", one["implementation_version_name"]),
        ("AE title", f"`{said['ae_title']}`"),
        ("called AE titles that are answered to", called if isinstance(called, str) else ", ".join(called)),
        ("callers", "those with rules of their own alone" if said["known_peers_only"] else "any"),
        ("callers with rules of their own", ", ".join(f"`{name}`" for name in said["peers"]) or "none"),
    ]
    return ["## Implementation", _table(("", ""), rows)]


def _association(said: Statement) -> list[str]:
    return [
        "## Associations",
        _table(
            ("application context name", "of"),
            ((one["uid"], one["of"]) for one in said["application_contexts"]),
        ),
        "As acceptor, beside storage (transfer syntaxes in the order of preference):",
        _services(said["acceptor"]),
        "As requestor (`scp-server echo`, `store`, `find`, `worklist`; `Requestor`):",
        _services(said["requestor"]),
    ]


def _services(services: Iterable[Statement]) -> str:
    return _table(
        ("SOP class", "UID", "role", "transfer syntaxes", "extended negotiation"),
        (
            (
                one["name"],
                one["uid"],
                one["role"],
                ", ".join(syntax["name"] for syntax in one["transfer_syntaxes"]),
                " ".join(map(str, one.get("extended_negotiation", ()))),
            )
            for one in services
        ),
    )


def _storage(storage: Statement) -> list[str]:
    others = "every other class that is no service" if storage["any_other_sop_class"] else "no other"
    below = ", ".join(f"`{prefix}`" for prefix in storage["all_below"])
    rows = [
        ("SOP classes", f"those listed at the end, all of DICOS and DICONDE ({below}), {others}"),
        (
            "transfer syntaxes",
            ", ".join(f"{one['name']} ({one['uid']})" for one in storage["transfer_syntaxes"]),
        ),
        ("level of conformance", storage["level"]),
        ("durability at 0x0000", f"`{storage['durability']}`"),
        ("other bytes under a kept UID", f"`{storage['duplicates']}`"),
        ("the same, of a DICOS object", f"`{storage['dicos_duplicates']}`"),
    ]
    return ["## C-STORE", _table(("", ""), rows), _statuses(storage["statuses"])]


def _statuses(statuses: Iterable[Statement]) -> str:
    return _table(("status", "when"), ((one["status"], one["when"]) for one in statuses))


def _query(query: Statement) -> list[str]:
    models = [
        (one["name"], one["sop_class_uid"], ", ".join(one["levels"]), ", ".join(one["unique_keys"]))
        for one in query["models"]
    ]
    negotiated = [
        (one["byte"], one["name"], "1" if one["supported"] else "0") for one in query["extended_negotiation"]
    ]
    keys = [
        (
            one["keyword"] + (" (DICOS)" if one["dicos"] else ""),
            f"({one['tag'][:4]},{one['tag'][4:]})",
            one["vr"],
            one["level"],
            one["kind"],
            one["source"],
            "yes" if one["matched"] else "no, universal (0xFF01 with a value)",
        )
        for one in query["keys"]
    ]
    missing = "matches any key" if query["unknown_values_match"] else "matches nothing but a universal key"
    return [
        "## C-FIND",
        _table(("information model", "SOP class", "levels", "unique keys"), models),
        f"Relational queries: `{query['relational']}`. Extended negotiation is answered byte by byte, "
        "no longer than it was offered, and never 1 where 0 was offered:",
        _table(("byte", "option", "at most"), negotiated),
        "Keys. Those of a lower level are matched when one value below does; those of a higher level are "
        "returned, and matched in relational queries only (but for the unique keys). In the Study Root a "
        "patient's attributes are the study's, and Patient's Name and Patient ID required keys of it.",
        _table(("attribute", "tag", "VR", "level", "kind", "from", "matched"), keys),
        f"Any other attribute, standard, private, DICOS or a sequence, is {query['any_other_attribute']}, of "
        f"at most {query['header_match_rows']} entities; later ones are returned unmatched, with 0xFF01. "
        f"What has no value {missing}.",
        _table(("VR", "matching"), ((one["vr"], "; ".join(one["types"])) for one in query["matching"])),
        "Several values of a key: one of them has to match, unless multiple value matching was "
        f"{_BY_AGREEMENT}. Person names are matched without regard to case; fuzzily where that was "
        f"{_BY_AGREEMENT}.",
        _statuses(query["statuses"]),
    ]


def _table(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)


def main(root: Path) -> None:
    """Write the page of the defaults below `root`, the top of the source tree."""
    (root / "docs" / "conformance.md").write_text(page(statement(Settings())), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path.cwd())
