"""The commands of `scp-server` and their options.

Nothing heavy is imported here: `scp-server echo` is to answer at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from scp_server.cli.callback_commands import callbacks, replay
from scp_server.cli.ending import end
from scp_server.cli.findings_commands import findings_app
from scp_server.cli.options import (
    AsJSON,
    CalledAETitle,
    CallingAETitle,
    ConfigFile,
    DataDir,
    Host,
    Port,
    QuarantineIds,
    StatementFormat,
    Timeout,
)
from scp_server.cli.outbox_commands import outbox_app
from scp_server.cli.query_commands import find, worklist
from scp_server.cli.retrieve_commands import get, move
from scp_server.cli.scan_commands import scan_app
from scp_server.cli.store_command import store
from scp_server.cli.validate_command import validate

PROGRAM = "scp-server"

app = typer.Typer(
    name=PROGRAM,
    help="A DICOM and DICOS server, and its commands.\n\nExample: scp-server serve --data-dir ./scp-data",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
config_app = typer.Typer(
    help="Check or show settings.\n\nExample: scp-server config check scp-server.toml",
    no_args_is_help=True,
    rich_markup_mode=None,
)
app.add_typer(config_app, name="config")
quarantine_app = typer.Typer(
    help="Look after refused data sets.\n\nExample: scp-server quarantine list --data-dir /data",
    no_args_is_help=True,
    rich_markup_mode=None,
)
app.add_typer(quarantine_app, name="quarantine")
app.add_typer(outbox_app, name="outbox")
app.add_typer(scan_app, name="scan")
app.add_typer(findings_app, name="findings")
index_app = typer.Typer(
    help="Look after the index, while no server runs.\n\nExample: scp-server index verify --data-dir /data",
    no_args_is_help=True,
    rich_markup_mode=None,
)
app.add_typer(index_app, name="index")


def _print_version(wanted: bool) -> None:
    if wanted:
        from scp_server import __version__

        print(f"{PROGRAM} {__version__}")
        raise typer.Exit


@app.callback()
def _program(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version and end."),
    ] = False,
) -> None:
    pass


@app.command()
def serve(
    config: ConfigFile = None,
    host: Annotated[
        str | None, typer.Option("--host", metavar="H", help="Address for DICOM; default 127.0.0.1.")
    ] = None,
    port: Annotated[
        int | None, typer.Option("--port", metavar="N", help="Port for DICOM, 0 for any; default 11112.")
    ] = None,
    ae_title: Annotated[
        str | None, typer.Option("--ae-title", metavar="T", help="Our AE title; default SCP_SERVER.")
    ] = None,
    data_dir: Annotated[
        Path | None,
        typer.Option("--data-dir", metavar="DIR", help="Folder of objects and index; default ./scp-data."),
    ] = None,
    http_host: Annotated[
        str | None, typer.Option("--http-host", metavar="H", help="Address for HTTP; default 127.0.0.1.")
    ] = None,
    http_port: Annotated[
        int | None, typer.Option("--http-port", metavar="N", help="Port for HTTP, 0 for any; default 8080.")
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option("--workers", metavar="N", help="Processes that accept associations; default 1."),
    ] = None,
    remote: Annotated[
        list[str] | None,
        typer.Option(
            "--remote",
            metavar="AET=HOST:PORT",
            help="Where C-MOVE may send to; may be given several times, in place of the file's remotes.",
            show_default=False,
        ),
    ] = None,
    log_format: Annotated[
        str | None,
        typer.Option(
            "--log-format", metavar="json|console", help="Default: console at a terminal, else json."
        ),
    ] = None,
    log_level: Annotated[
        str | None,
        typer.Option(
            "--log-level", metavar="L", help="debug, info, warning, error or critical; default info."
        ),
    ] = None,
) -> None:
    """Run the server in the foreground until SIGTERM or Ctrl-C.

    Options win over SCP_SERVER_ variables of the environment, and those over the settings file.

    Example: scp-server serve --host 0.0.0.0 --ae-title ARCHIVE --data-dir /data
    """
    from scp_server.cli.serve import remotes, run_server, tables

    def run() -> int:
        overrides = tables(
            {
                "listen.host": host,
                "listen.port": port,
                "listen.ae_title": ae_title,
                "data_dir": data_dir,
                "http.host": http_host,
                "http.port": http_port,
                "workers": workers,
                "remotes": remotes(remote or ()),
                "log.format": log_format,
                "log.level": log_level,
            }
        )
        return run_server(config, overrides)

    end(run)


@app.command()
def demo(
    once: Annotated[
        bool, typer.Option("--once", help="End by itself, with exit code 1 if anything is not found again.")
    ] = False,
    pictures: Annotated[
        Path | None,
        typer.Option(
            "--pictures", metavar="DIR", help="Put the pictures there and leave them.", show_default=False
        ),
    ] = None,
    as_json: AsJSON = False,
) -> None:
    """Run a server on free ports and a temporary folder, send it samples, and show them found again.

    Without --once it stays up until Ctrl-C. The folder is removed at the end.

    Example: scp-server demo --once
    """
    from scp_server.cli.demo import run_demo

    end(lambda: run_demo(once=once, pictures=pictures, as_json=as_json))


@app.command()
def echo(
    host: Host = "127.0.0.1",
    port: Port = 11_112,
    ae_title: CalledAETitle = "ANY-SCP",
    calling_ae_title: CallingAETitle = "SCP_SERVER_SCU",
    timeout: Timeout = 30.0,
    as_json: AsJSON = False,
) -> None:
    """Ask a peer whether it is there (C-ECHO).

    Example: scp-server echo --host 127.0.0.1 --port 11112 --ae-title ARCHIVE
    """
    from scp_server.cli.echo import run_echo
    from scp_server.cli.peer import Peer

    peer = Peer(host, port, ae_title, calling_ae_title, timeout)
    end(lambda: run_echo(peer, as_json=as_json))


app.command()(store)
app.command()(find)
app.command()(worklist)
app.command()(move)
app.command()(get)
app.command()(callbacks)
app.command()(replay)
app.command()(validate)


@config_app.command("check")
def config_check(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Settings file (TOML).", show_default=False)],
    as_json: AsJSON = False,
) -> None:
    """Check a settings file by itself: every problem with file, line and key.

    Example: scp-server config check scp-server.toml
    """
    from scp_server.cli.config import run_check

    end(lambda: run_check(file, as_json=as_json))


@config_app.command("show")
def config_show(config: ConfigFile = None, as_json: AsJSON = False) -> None:
    """Show the effective settings: file, then environment. Secrets are masked.

    Example: scp-server config show --config scp-server.toml
    """
    from scp_server.cli.config import run_show

    end(lambda: run_show(config, as_json=as_json))


@app.command()
def conformance(
    format: Annotated[
        StatementFormat, typer.Option("--format", help="A page (Markdown) or JSON.")
    ] = StatementFormat.MD,
    config: ConfigFile = None,
    as_json: AsJSON = False,
) -> None:
    """Print the conformance statement of the configuration: file, then environment.

    Example: scp-server conformance --config scp-server.toml
    """
    from scp_server.cli.conformance import run_conformance

    end(lambda: run_conformance(config, as_json=as_json or format is StatementFormat.JSON))


@app.command()
def status(
    watch: Annotated[bool, typer.Option("--watch", help="Again every second, until Ctrl-C.")] = False,
    data_dir: DataDir = None,
    as_json: AsJSON = False,
) -> None:
    """Show how the running server is: associations, rates, totals, quarantine, space, last errors.

    Example: scp-server status --watch --data-dir /data
    """
    from scp_server.cli.status import run_status

    end(lambda: run_status(data_dir, watch=watch, as_json=as_json))


@quarantine_app.command("list")
def quarantine_list(data_dir: DataDir = None, as_json: AsJSON = False) -> None:
    """List refused data sets, the oldest first.

    Example: scp-server quarantine list --data-dir /data
    """
    from scp_server.cli.quarantine import run_list

    end(lambda: run_list(data_dir, as_json=as_json))


@quarantine_app.command("show")
def quarantine_show(
    object_id: Annotated[str, typer.Argument(metavar="ID", help="As in the list.", show_default=False)],
    data_dir: DataDir = None,
    as_json: AsJSON = False,
) -> None:
    """Show all that is known of one refused data set, and where its bytes lie.

    Example: scp-server quarantine show 18790e5c1a2b3c4d0a1b2c --data-dir /data
    """
    from scp_server.cli.quarantine import run_show

    end(lambda: run_show(object_id, data_dir, as_json=as_json))


@quarantine_app.command("release")
def quarantine_release(ids: QuarantineIds, data_dir: DataDir = None, as_json: AsJSON = False) -> None:
    """Store refused data sets again, as if their sender had sent them now. Needs the running server.

    What is stored leaves the quarantine; what is refused again stays, with the new reason.

    Example: scp-server quarantine release 18790e5c1a2b3c4d0a1b2c --data-dir /data
    """
    from scp_server.cli.quarantine import run_release

    end(lambda: run_release(ids, data_dir, as_json=as_json))


@quarantine_app.command("drop")
def quarantine_drop(ids: QuarantineIds, data_dir: DataDir = None, as_json: AsJSON = False) -> None:
    """Delete refused data sets for ever.

    Example: scp-server quarantine drop 18790e5c1a2b3c4d0a1b2c --data-dir /data
    """
    from scp_server.cli.quarantine import run_drop

    end(lambda: run_drop(ids, data_dir, as_json=as_json))


@index_app.command("rebuild")
def index_rebuild(config: ConfigFile = None, data_dir: DataDir = None, as_json: AsJSON = False) -> None:
    """Restore the index from the objects alone. Works while no server uses the folder.

    A new index grows beside the old one; killed, the next rebuild goes on. At the end it takes the old one's
    place, which is kept under another name. Files that cannot be read are listed and left where they are;
    the exit code is then 1.

    Example: scp-server index rebuild --data-dir /data
    """
    from scp_server.cli.index import run_rebuild

    end(lambda: run_rebuild(config, data_dir, as_json=as_json))


@index_app.command("verify")
def index_verify(
    config: ConfigFile = None,
    data_dir: DataDir = None,
    digest: Annotated[
        bool,
        typer.Option(
            "--digest/--no-digest", help="Read every object and compare its digest, or only look at sizes."
        ),
    ] = True,
    repair: Annotated[
        bool, typer.Option("--repair", help="Adopt files that the index does not know.")
    ] = False,
    drop_danglers: Annotated[
        bool,
        typer.Option("--drop-danglers", help="With --repair: forget rows whose file is not there."),
    ] = False,
    as_json: AsJSON = False,
) -> None:
    """Compare objects and index, both ways, also while the server runs: then it does the work.

    The exit code is 0 when all is well or was made well, and 1 when something is left that is not.

    Example: scp-server index verify --data-dir /data --no-digest
    """
    from scp_server.cli.index import run_verify

    end(
        lambda: run_verify(
            config, data_dir, digest=digest, repair=repair, drop_danglers=drop_danglers, as_json=as_json
        )
    )


@app.command("delete")
def delete(
    study: Annotated[
        str | None, typer.Option("--study", metavar="UID", help="Delete a study, by its Study Instance UID.")
    ] = None,
    series: Annotated[
        str | None,
        typer.Option(
            "--series", metavar="UID", help="Delete a series, by its UID, in every study that has it."
        ),
    ] = None,
    instance: Annotated[
        str | None,
        typer.Option("--instance", metavar="UID", help="Delete an instance with all its parts, by its UID."),
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask; needed where nobody can answer.")] = False,
    config: ConfigFile = None,
    data_dir: DataDir = None,
    as_json: AsJSON = False,
) -> None:
    """Delete a study, a series or an instance: rows and files, also while the server runs.

    Once decided it is finished: by the server whatever happens to this command, or by the next start.

    Example: scp-server delete --study 1.2.840.99.1 --data-dir /data --yes
    """
    from scp_server.cli.delete import run_delete

    end(
        lambda: run_delete(
            config, data_dir, study=study, series=series, instance=instance, yes=yes, as_json=as_json
        )
    )


@app.command("info")
def info(
    files: Annotated[
        list[Path],
        typer.Argument(
            metavar="FILE...", help="A Part 10 file, or all parts of one CT or AIT.", show_default=False
        ),
    ],
    as_json: AsJSON = False,
) -> None:
    """Show what a stored object is and says, DICOS or medical. Nothing is hidden.

    Example: scp-server info bag.dcs
    """
    from scp_server.cli.info import run_info

    end(lambda: run_info(files, as_json=as_json))


@app.command("backup")
def backup(
    output: Annotated[
        Path, typer.Option("--output", metavar="DIR", help="Where to; a new folder or an empty one.")
    ],
    copy_objects: Annotated[
        bool, typer.Option("--copy", help="Copy objects, even where hard links are possible.")
    ] = False,
    config: ConfigFile = None,
    data_dir: DataDir = None,
    as_json: AsJSON = False,
) -> None:
    """Back up index and objects, also while the server runs; every object is compared with its digest.

    Hard links are made where that is possible: they cost no space, and save nothing from a lost disk.

    Example: scp-server backup --data-dir /data --output /backup/today --copy
    """
    from scp_server.cli.backup import run_backup

    end(lambda: run_backup(config, data_dir, output, copy_objects=copy_objects, as_json=as_json))


@app.command("restore")
def restore(
    source: Annotated[Path, typer.Option("--input", metavar="DIR", help="A folder that `backup` made.")],
    config: ConfigFile = None,
    data_dir: DataDir = None,
    as_json: AsJSON = False,
) -> None:
    """Put a backup into a new or empty data folder, comparing every file with its digest.

    Example: scp-server restore --input /backup/today --data-dir /data
    """
    from scp_server.cli.backup import run_restore

    end(lambda: run_restore(config, data_dir, source, as_json=as_json))


def main(arguments: Sequence[str] | None = None) -> None:
    """The `scp-server` program; ends by SystemExit with 0, 1, 2 or 3."""
    app(args=arguments, prog_name=PROGRAM)


if __name__ == "__main__":
    main()
