"""What `find` and `worklist` share: reading `--query`, asking, and reporting how it ended."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from scp_server.cli.output import ExitCode, complain, fail
from scp_server.cli.peer import Peer
from scp_server.errors import (
    AssociationError,
    FindFailed,
    LocalProtocolError,
    QueryError,
    UnreadableDataset,
)

if TYPE_CHECKING:
    from scp_server.cli.match_writers import Counter, MatchWriter
    from scp_server.net.finding import FindResult
    from scp_server.objects.match import Match
    from scp_server.objects.query import Query
    from scp_server.objects.query_model import QueryOptions


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a search went: its trouble in words (empty when all went well), and the exit code for that."""

    trouble: str = ""
    code: ExitCode = ExitCode.OK
    result: FindResult | None = None


def read_query(text: str) -> Mapping[str, object]:
    """The keys of `--query`: JSON, or `@FILE` with JSON in it. Raises QueryError."""
    where = "--query"
    if text.startswith("@"):
        where = text[1:]
        try:
            text = Path(where).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "not UTF-8"
            raise QueryError(f"{where} cannot be read: {reason}") from error
    try:
        keys = json.loads(text, object_pairs_hook=_without_repetition)
    except json.JSONDecodeError as error:
        raise QueryError(
            f"{where}: no JSON at line {error.lineno}, column {error.colno}: {error.msg}"
        ) from error
    except RecursionError as error:
        raise QueryError(f"{where}: too deep") from error
    if not isinstance(keys, dict):
        raise QueryError(f"{where}: a query is a JSON object of keys and values")
    return keys


def run_query(
    peer: Peer, query: Query, *, limit: int | None, options: QueryOptions, as_json: bool
) -> ExitCode:
    """Ask, write matches as they come, and say on standard error how it ended. Raises QueryError."""
    from scp_server.cli.match_cells import columns_of
    from scp_server.cli.match_writers import Counter, choose_writer
    from scp_server.objects.query_encoding import encode_identifier
    from scp_server.objects.uids import EXPLICIT_VR_LITTLE_ENDIAN, transfer_syntax

    # What cannot be said at all is found out before anybody is called.
    encode_identifier(query, transfer_syntax(EXPLICIT_VR_LITTLE_ENDIAN))
    counter = Counter(as_json=as_json)
    writer = choose_writer(list(columns_of(query.keys)), counter, as_json=as_json)
    search = _Search(peer, query, options, limit)
    outcome = Outcome("interrupted", ExitCode.FAILED)
    try:
        outcome = asyncio.run(search.run(writer, counter))
    except KeyboardInterrupt:
        pass
    finally:
        counter.clear()
        writer.end(found_all=outcome.code is ExitCode.OK)
    if outcome.code is not ExitCode.OK and as_json and not search.written:
        return fail(outcome.trouble, outcome.code, as_json=True)
    if outcome.trouble:
        complain(outcome.trouble)
    if outcome.result is not None or search.written:
        complain(search.summary(outcome.result))
    return outcome.code


class _Search:
    """One association, one C-FIND, and what there is to say of them."""

    def __init__(self, peer: Peer, query: Query, options: QueryOptions, limit: int | None) -> None:
        self._peer = peer
        self._query = query
        self._options = options
        self._limit = limit
        self._associated = False
        self._unreadable = 0
        self.written = 0

    async def run(self, writer: MatchWriter, counter: Counter) -> Outcome:
        """Ask for everything. Ctrl-C ends it with C-CANCEL and release; a second one breaks off."""
        from scp_server.net.cancellable import IDENTIFIER_TRANSFER_SYNTAXES

        contexts = [(self._query.model.sop_class_uid, IDENTIFIER_TRANSFER_SYNTAXES)]
        try:
            async with self._peer.requestor(contexts, self._options) as association:
                self._associated = True
                agreed = association.agreed_query_options(self._query.model)
                if missing := [name for name in self._options.names() if name not in agreed.names()]:
                    complain(f"{self._peer} does not agree on {', '.join(missing)}; asking without")
                finding = association.find(self._query, limit=self._limit)
                try:
                    async for match in finding:
                        self._write(writer, match)
                        counter.show(self.written)
                except FindFailed as error:
                    return Outcome(f"{self._peer}: {error}", ExitCode.FAILED, finding.result)
                except asyncio.CancelledError:
                    # Ctrl-C: the search has been cancelled, and the association can be released.
                    return Outcome("interrupted", ExitCode.FAILED, finding.result)
        except AssociationError as error:
            code = ExitCode.FAILED if self._associated else ExitCode.NO_ASSOCIATION
            return Outcome(f"no answer from {self._peer}: {error}", code)
        except LocalProtocolError as error:
            return Outcome(f"no query of {self._peer}: {error}", ExitCode.FAILED)
        if self._unreadable:
            return Outcome(
                f"{self._unreadable} of the matches cannot be read", ExitCode.FAILED, finding.result
            )
        return Outcome(result=finding.result)

    def summary(self, result: FindResult | None) -> str:
        """How many matches there were, and whether they are all."""
        text = f"{self.written} {'match' if self.written == 1 else 'matches'}"
        if result is not None and result.cancelled:
            text += ", then cancelled"
        if result is not None and not result.all_keys_supported:
            text += "; 0xFF01: some keys were not supported or not matched"
        return text

    def _write(self, writer: MatchWriter, match: Match) -> None:
        try:
            writer.write(match)
        except UnreadableDataset as error:
            self._unreadable += 1
            complain(str(error))
        else:
            self.written += 1


def _without_repetition(pairs: list[tuple[str, object]]) -> dict[str, object]:
    keys = dict(pairs)
    if len(keys) != len(pairs):
        names = [name for name, _ in pairs]
        raise QueryError(f"{next(name for name in names if names.count(name) > 1)!r} is there twice")
    return keys
