"""The commands `callbacks` and `replay`, with their options."""

from __future__ import annotations

from typing import Annotated

import typer

from scp_server.cli.ending import end
from scp_server.cli.options import AsJSON, ConfigFile, DataDir


def callbacks(config: ConfigFile = None, data_dir: DataDir = None, as_json: AsJSON = False) -> None:
    """List the callbacks that the settings and installed packages bring, in the order of their calls.

    Where a server runs on the data folder it is said which of them it has.

    Example: scp-server callbacks --config scp-server.toml
    """
    from scp_server.cli.callbacks import run_callbacks

    end(lambda: run_callbacks(config, data_dir, as_json=as_json))


def replay(
    name: Annotated[
        str, typer.Argument(metavar="NAME", help="As `scp-server callbacks` lists it.", show_default=False)
    ],
    study: Annotated[
        str | None, typer.Option("--study", metavar="UID", help="Objects of a study.", show_default=False)
    ] = None,
    series: Annotated[
        str | None, typer.Option("--series", metavar="UID", help="Objects of a series.", show_default=False)
    ] = None,
    instance: Annotated[
        str | None, typer.Option("--instance", metavar="UID", help="One instance.", show_default=False)
    ] = None,
    query: Annotated[
        str | None,
        typer.Option(
            "--query",
            metavar="JSON",
            help="Objects that match all keys, as JSON or as @FILE with JSON in it; looks at every object.",
            show_default=False,
        ),
    ] = None,
    everything: Annotated[bool, typer.Option("--all", help="Every object.")] = False,
    apply: Annotated[
        bool, typer.Option("--apply", help="Really call a callback of the stage stored.")
    ] = False,
    config: ConfigFile = None,
    data_dir: DataDir = None,
    as_json: AsJSON = False,
) -> None:
    """Show what a callback does with objects that are stored already. Works beside a running server.

    One of the stage received is asked, and it is shown what it says: nothing is refused or changed any more.
    One of the stage stored has effects: without --apply it is only shown which objects it is meant for.

    Example: scp-server replay check_patient --study 1.2.840.99.1 --data-dir /data
    """
    from scp_server.cli.callbacks import run_replay

    end(
        lambda: run_replay(
            name,
            config,
            data_dir,
            study=study,
            series=series,
            instance=instance,
            query=query,
            everything=everything,
            apply=apply,
            as_json=as_json,
        )
    )
