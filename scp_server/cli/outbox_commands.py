"""The commands `outbox list|retry|drop`, with their options."""

from __future__ import annotations

from typing import Annotated

import typer

from scp_server.cli.ending import end
from scp_server.cli.options import AsJSON, DataDir

outbox_app = typer.Typer(
    help="Look after what is delivered to callbacks, remotes and webhooks.\n\n"
    "Example: scp-server outbox list --data-dir /data",
    no_args_is_help=True,
    rich_markup_mode=None,
)

Name = Annotated[str, typer.Argument(metavar="NAME", help="As in the list.", show_default=False)]
EventId = Annotated[
    int | None, typer.Option("--event", metavar="ID", help="One event.", min=1, show_default=False)
]


@outbox_app.command("list")
def outbox_list(data_dir: DataDir = None, as_json: AsJSON = False) -> None:
    """Show for each subscription how far behind it is, what is parked or dead, and whether it is down.

    Example: scp-server outbox list --data-dir /data
    """
    from scp_server.cli.outbox import run_list

    end(lambda: run_list(data_dir, as_json=as_json))


@outbox_app.command("retry")
def outbox_retry(
    name: Name,
    event: EventId = None,
    everything: Annotated[bool, typer.Option("--all", help="All that is parked or dead.")] = False,
    data_dir: DataDir = None,
    as_json: AsJSON = False,
) -> None:
    """Try at once what failed, dead letters too, and count its attempts from the beginning.

    Dead letters may come behind what is later in their series and has been delivered meanwhile.

    Example: scp-server outbox retry forward:night:ARCHIVE --all --data-dir /data
    """
    from scp_server.cli.outbox import run_retry

    end(lambda: run_retry(name, event, data_dir, everything=everything, as_json=as_json))


@outbox_app.command("drop")
def outbox_drop(
    name: Name,
    event: EventId = None,
    all_dead: Annotated[bool, typer.Option("--all-dead", help="All dead letters.")] = False,
    subscription: Annotated[
        bool, typer.Option("--subscription", help="The subscription itself, which no rule or callback has.")
    ] = False,
    data_dir: DataDir = None,
    as_json: AsJSON = False,
) -> None:
    """Give up for good one event, all dead letters, or a subscription that is not in use any more.

    Example: scp-server outbox drop forward:night:ARCHIVE --event 4711 --data-dir /data
    """
    from scp_server.cli.outbox import run_drop

    end(
        lambda: run_drop(name, event, data_dir, all_dead=all_dead, subscription=subscription, as_json=as_json)
    )
