"""The conformance statement as a page."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from scp_server.index.search import MAX_DISTINCT_VALUES
from scp_server.runtime.conformance import Statement


def markdown(claims: Statement) -> str:
    """The statement as a page."""
    implementation, association = claims["implementation"], claims["association"]
    lines = [
        "# DICOM and DICOS conformance statement",
        "",
        f"{implementation['name']} {implementation['version']}, made from its configuration by "
        "`scp-server conformance`.",
        "",
        f"Implementation Class UID `{implementation['implementation_class_uid']}`, "
        f"Implementation Version Name `{implementation['implementation_version_name']}`.",
        "",
        "## Associations",
        "",
        *_table(
            ("", ""),
            [(key.replace("_", " "), _text(value)) for key, value in association.items()],
        ),
        "",
        "Times in seconds, 0 is never. User identity is accepted and not checked; a response is given when "
        "it is asked for.",
        "",
        "## SOP classes",
        "",
        "As SCP:",
        "",
        *_table(
            ("service", "SOP class", "UID"),
            [
                (service, each["name"], each["uid"])
                for service in ("verification", "query", "retrieve", "storage")
                for each in claims["scp"][service]
            ],
        ),
        "",
        f"Storage also of everything below {', '.join(claims['scp']['storage_below'])}"
        + (
            ", and of every class not known to be a service's." if claims["scp"]["any_other_storage"] else "."
        ),
        f"As SCU: {', '.join(claims['scu'])}.",
        "",
        "## Transfer syntaxes, in order of preference",
        "",
        *_table(
            ("for", "transfer syntax", "UID"),
            [
                (use, each["name"], each["uid"])
                for use, syntaxes in claims["transfer_syntaxes"].items()
                for each in syntaxes
            ],
        ),
        "",
        "## Storage",
        "",
        *_table(
            ("", ""),
            [
                (key.replace("_", " "), _text(value))
                for key, value in claims["storage"].items()
                if key != "statuses"
            ],
        ),
        "",
        *_table(("status", "means"), list(claims["storage"]["statuses"].items())),
        "",
        *_query_lines(claims["query"]),
        "## Retrieve",
        "",
        *_table(
            ("", ""),
            [
                (key.replace("_", " "), _text(value) or "none")
                for key, value in claims["retrieve"].items()
                if key not in ("statuses", "sent_in", "given_another")
            ],
        ),
        "",
        "An object is sent in the transfer syntax that it is stored in, where that was accepted, otherwise "
        "in the first of these that was:",
        "",
        *(f"{number}. {each['name']}" for number, each in enumerate(claims["retrieve"]["sent_in"], 1)),
        "",
        *_table(
            ("stored in", "", "given another transfer syntax"),
            [(each["uid"], each["name"], each["how"]) for each in claims["retrieve"]["given_another"]],
        ),
        "",
        "Objects in any other transfer syntax are sent as they are stored only.",
        "",
        *_table(("status", "means"), list(claims["retrieve"]["statuses"].items())),
        "",
        "## Limits and timers",
        "",
        "In bytes and seconds, as the names say; 0 is none or never. [settings.md](settings.md) explains "
        "each.",
        "",
        *_table(
            ("setting", "value"),
            [(f"`{name}`", str(value)) for name, value in claims["limits"].items()],
        ),
        "",
        "## Not supported",
        "",
        *(f"- {each}." for each in claims["not_supported"]),
    ]
    return "\n".join(lines) + "\n"


def _query_lines(query: Statement) -> list[str]:
    lines = ["## Query", ""]
    for model in query["models"]:
        lines += [f"### {model['name']} ({model['uid']})", ""]
        rows = [
            (
                level["level"],
                level["unique"],
                ", ".join(level["required"]),
                ", ".join(level["optional"]),
                ", ".join(level["computed"] + level["ours"]),
            )
            for level in model["levels"]
        ]
        lines += [*_table(("level", "unique key", "required keys", "optional keys", "computed"), rows), ""]
    lines += [
        f"Keys of lower levels match when one of the values below does, of which {MAX_DISTINCT_VALUES} at "
        f"most are returned. {query['other_keys'][0].upper()}{query['other_keys'][1:]}; beyond "
        f"{query['header_match_rows']} of them a query returns them unmatched, with 0xFF01. "
        f"{query['decisions']}.",
        "",
        *_table(
            ("extended negotiation", "answered at most"),
            [
                (name.replace("_", " "), "1" if supported else "0")
                for name, supported in query["extended_negotiation"].items()
            ],
        ),
        "",
        *_table(("matching", "for"), [(name, ", ".join(vrs)) for name, vrs in query["matching"].items()]),
        "",
        f"Person names match {query['person_names']}. Of several values, {query['several_values']}. What "
        f"has no value matches {'every key' if query['unknown_values_match'] else 'universal keys only'}. "
        f"Relational queries: {query['relational']}. Most matches: {query['max_matches'] or 'no limit'}.",
        "",
        f"Specific Character Sets: {', '.join(query['character_sets'])}. Answers are in the request's where "
        "it can say them, and in ISO_IR 192 otherwise.",
        "",
        *_table(("status", "means"), list(query["statuses"].items())),
        "",
    ]
    return lines


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    return [
        f"| {' | '.join(head)} |",
        f"|{'---|' * len(head)}",
        *(f"| {' | '.join(row)} |" for row in rows),
    ]


def _text(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)
