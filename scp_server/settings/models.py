"""Every setting there is, with its default, its bounds and its reason.

`docs/settings.md` and `config/example.toml` are made from these descriptions (`python -m
scp_server.settings.reference`), and a test compares them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from scp_server.errors import ConfigurationError
from scp_server.objects.uid_names import sop_class_uid, transfer_syntax_uid
from scp_server.protocol.negotiation import DICOM_APPLICATION_CONTEXT
from scp_server.settings.callbacks import CallbacksSettings
from scp_server.settings.codecs import CodecsSettings
from scp_server.settings.events import DecisionsSettings, EventsSettings, OutboxSettings
from scp_server.settings.forward import ForwardSettings, check_remotes
from scp_server.settings.keeping import ControlSettings, QuarantineSettings
from scp_server.settings.limits import LimitsSettings, TimeoutsSettings
from scp_server.settings.names import ANY_OTHER, application_context_names
from scp_server.settings.object_rules import CoerceSettings, RequireAttributesSettings
from scp_server.settings.peers import Duplicates, PeerSettings, check_each_once
from scp_server.settings.query import QuerySettings, RetrieveSettings
from scp_server.settings.remotes import RemoteSettings, check_titles
from scp_server.settings.rules import RuleSettings, check_names
from scp_server.settings.section import AETitle, Host, Port, Section, Texts
from scp_server.settings.validation import ValidationSettings
from scp_server.settings.webhook import WebhookSettings
from scp_server.storage.template import DEFAULT_TEMPLATE, LayoutTemplate

_PLUGIN = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*(:[A-Za-z_]\w*)?")


def _layout(text: str) -> str:
    LayoutTemplate(text)
    return text


Layout = Annotated[str, AfterValidator(_layout)]


class ListenSettings(Section):
    """Where DICOM peers find the server."""

    host: Host = Field(
        default="127.0.0.1",
        description="Address or host name to listen on. Loopback by default: opening the server to a "
        "network is a decision; 0.0.0.0 is every IPv4 address, :: every address.",
    )
    port: Port = Field(default=11_112, description="TCP port (registered for DICOM); 0 takes any free one.")
    ae_title: AETitle = Field(
        default="SCP_SERVER",
        description="Our AE title, 1 to 16 characters. Any called AE title is accepted unless "
        "access.require_called_ae_title is set.",
    )


class HTTPSettings(Section):
    """Where /healthz, /readyz, /metrics and /events are served."""

    host: Host = Field(default="127.0.0.1", description="Address or host name to listen on for HTTP.")
    port: Port = Field(default=8_080, description="TCP port for HTTP; 0 takes any free one.")


class LogSettings(Section):
    """What is logged, to standard error."""

    format: Literal["json", "console"] | None = Field(
        default=None, description="json or console; when not set, console at a terminal and json otherwise."
    )
    level: Literal["debug", "info", "warning", "error", "critical"] = Field(
        default="info", description="Least level that is written. Patients' identities appear at debug only."
    )


class AccessSettings(Section):
    """Who may associate."""

    require_called_ae_title: bool = Field(
        default=False,
        description="Reject associations that call another AE title than ours (A-ASSOCIATE-RJ 1/1/7).",
    )
    known_peers_only: bool = Field(
        default=False,
        description="Reject callers that match none of the [[peers]] (A-ASSOCIATE-RJ 1/1/3). When false they "
        "may do everything.",
    )


class NegotiationSettings(Section):
    """What is accepted when an association is negotiated."""

    transfer_syntaxes: Texts = Field(
        default=("ExplicitVRLittleEndian", ANY_OTHER, "ImplicitVRLittleEndian"),
        description="Transfer syntaxes for storage in order of preference, as UIDs or keywords. * is "
        "whatever else the peer proposes, in its order; without it only those listed are "
        "accepted. Implicit VR comes last, since it loses the VRs of private and DICOS "
        "attributes.",
    )
    application_contexts: Texts = Field(
        default=("dicom", "dicos"),
        description="Application context names: dicom, dicos (its three names) or UIDs. DICOS scanners do "
        "not use DICOM's.",
    )
    sop_classes: Literal["standard", "any"] = Field(
        default="standard",
        description="Which SOP classes are stored: standard is every known storage SOP class and all of "
        "DICOS and DICONDE; any also takes every class that is not known to be something "
        "else.",
    )
    additional_sop_classes: Texts = Field(
        default=(), description="More SOP classes to store, as UIDs or keywords: private ones, for instance."
    )

    @field_validator("transfer_syntaxes")
    @classmethod
    def _transfer_syntaxes(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        _some_and_each_once([uid for name in names for uid in _uids_of(_transfer_syntax, name)])
        return names

    @field_validator("application_contexts")
    @classmethod
    def _application_contexts(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        _some_and_each_once([uid for name in names for uid in _uids_of(application_context_names, name)])
        return names

    @field_validator("additional_sop_classes")
    @classmethod
    def _additional_sop_classes(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(uid for name in names for uid in _uids_of(_sop_class, name))

    @property
    def transfer_syntax_uids(self) -> tuple[str, ...]:
        """`transfer_syntaxes` as UIDs; `*` stays as it is."""
        return tuple(uid for name in self.transfer_syntaxes for uid in _transfer_syntax(name))

    @property
    def application_context_names(self) -> tuple[str, ...]:
        """`application_contexts` as UIDs."""
        return tuple(uid for name in self.application_contexts for uid in application_context_names(name))


class StorageSettings(Section):
    """How objects are kept."""

    durability: Literal["full", "process"] = Field(
        default="full",
        description="What an acknowledged object survives: full is a power failure (object, directory and "
        "index are synced before the answer), process is a crash of the server only.",
    )
    reserve_bytes: Annotated[int, Field(ge=0)] | None = Field(
        default=None,
        description="Free space that stays untouched; below it objects are refused with 0xA700. When not "
        "set, the smaller of 1 GiB and 2 % of the filesystem.",
    )
    write_buffer_bytes: int = Field(
        default=1_048_576,
        ge=4_096,
        description="Bytes of one object that are gathered for one write to disk.",
    )
    layout: Layout = Field(
        default=DEFAULT_TEMPLATE,
        description="Template of where objects are put below the folder objects; an arrival id and .dcm "
        "end each file's name. Its fields, with examples, are in docs/layouts.md. Another template holds "
        "for what comes from then on, and what was stored is found where it lies.",
    )
    threads: int = Field(
        default=4, ge=1, le=256, description="Threads that write to disk, so that a slow one stops no one."
    )
    shared_sync_bytes: int = Field(
        default=65_536,
        ge=0,
        le=1_048_576,
        description="Largest file that is not synced by itself, with durability full and one worker: its "
        "bytes are kept in the index, whose transactions share one sync, until the file is durable too. 0 "
        "syncs each file, as several workers do.",
    )
    settle_seconds: float = Field(
        default=1.0,
        gt=0,
        allow_inf_nan=False,
        description="How long such a file may wait, with all that came after it, for the sync that makes "
        "them durable.",
    )
    max_unsettled_objects: int = Field(
        default=2_048,
        ge=0,
        description="Most objects whose bytes are kept in the index. At half of it they are synced at once; "
        "beyond it, objects are synced each by itself. A start after a crash looks at all of them.",
    )
    max_unsettled_bytes: int = Field(
        default=33_554_432,
        ge=0,
        description="The same for their bytes, which are also held in memory until they are in the index.",
    )
    duplicates: Duplicates = Field(
        default="keep_first",
        description="Other bytes under a SOP Instance UID that is already kept: keep_first refuses them "
        "with 0xC111, reject with 0xC112, parts keeps both, replace deletes what was kept. The same bytes "
        "again are always a success.",
    )
    dicos_duplicates: Duplicates = Field(
        default="parts",
        description="The same for DICOS objects: the sections of a DICOS CT arrive under one SOP Instance "
        "UID.",
    )


class IndexSettings(Section):
    """How the index is written and searched."""

    max_batch: int = Field(default=256, ge=1, le=256, description="Most objects that share one transaction.")
    max_queue: int = Field(
        default=4_096, ge=1, description="Objects that may wait for the index; further ones wait before it."
    )
    busy_timeout_seconds: float = Field(
        default=5.0,
        gt=0,
        allow_inf_nan=False,
        description="How long a locked index is waited for before 0xA700.",
    )
    readers: int = Field(
        default=2,
        ge=1,
        le=64,
        description="Threads that queries are searched and matched in, each with a connection to the index.",
    )
    compare_at_start: bool = Field(
        default=True,
        description="Compare objects and index in the background once the server is ready: files that the "
        "index does not know are adopted, rows without a file are logged.",
    )
    compare_objects_per_second: int = Field(
        default=1_000,
        ge=1,
        description="How fast that comparison may go, and index verify while the server runs, so that they "
        "disturb nobody.",
    )


class SettingsTree(BaseModel):
    """All settings, without where they come from."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, hide_input_in_errors=True)

    data_dir: Annotated[Path, Field(strict=False)] = Field(
        default=Path("scp-data"),
        description="Folder of everything that is kept: objects and index. Relative to where the server "
        "is started.",
    )
    workers: int = Field(
        default=1,
        ge=1,
        le=64,
        description="Processes that accept associations on the one port. Caps hold for all of them together; "
        "what is divided among them is told in docs/operating.md.",
    )
    worker_silence_seconds: float = Field(
        default=10.0,
        ge=1,
        le=300,
        allow_inf_nan=False,
        description="With several workers: how long one may say nothing before it is killed and another "
        "takes its place.",
    )
    drain_timeout_seconds: float = Field(
        default=30.0,
        ge=0,
        allow_inf_nan=False,
        description="After SIGTERM: how long operations may finish before associations are aborted.",
    )
    close_timeout_seconds: float = Field(
        default=10.0,
        ge=0,
        allow_inf_nan=False,
        description="After that: how long associations, storage and index may take to end before the process "
        "ends without them, with exit code 1. A disk that hangs would hold it for ever.",
    )
    plugins: Texts = Field(
        default=(),
        description="Python modules with callbacks, as package.module or package.module:name. They run with "
        "the rights of the server; docs/extending.md shows how they are written.",
    )
    listen: ListenSettings = Field(default_factory=ListenSettings)
    http: HTTPSettings = Field(default_factory=HTTPSettings)
    log: LogSettings = Field(default_factory=LogSettings)
    access: AccessSettings = Field(default_factory=AccessSettings)
    negotiation: NegotiationSettings = Field(default_factory=NegotiationSettings)
    limits: LimitsSettings = Field(default_factory=LimitsSettings)
    timeouts: TimeoutsSettings = Field(default_factory=TimeoutsSettings)
    storage: StorageSettings = Field(default_factory=StorageSettings)
    index: IndexSettings = Field(default_factory=IndexSettings)
    query: QuerySettings = Field(default_factory=QuerySettings)
    retrieve: RetrieveSettings = Field(default_factory=RetrieveSettings)
    codecs: CodecsSettings = Field(default_factory=CodecsSettings)
    quarantine: QuarantineSettings = Field(default_factory=QuarantineSettings)
    control: ControlSettings = Field(default_factory=ControlSettings)
    callbacks: CallbacksSettings = Field(default_factory=CallbacksSettings)
    events: EventsSettings = Field(default_factory=EventsSettings)
    outbox: OutboxSettings = Field(default_factory=OutboxSettings)
    decisions: DecisionsSettings = Field(default_factory=DecisionsSettings)
    validation: ValidationSettings = Field(default_factory=ValidationSettings)
    peers: Annotated[tuple[PeerSettings, ...], Field(strict=False)] = Field(
        default=(),
        description="Single peers, or networks of them: what they may do, how they are treated. The first "
        "that matches holds.",
    )
    remotes: Annotated[tuple[RemoteSettings, ...], Field(strict=False)] = Field(
        default=(),
        description="Where C-MOVE may send to, by AE title. A peer that names another title hears 0xA801: "
        "nothing is ever dialled but what stands here.",
    )
    coerce: Annotated[tuple[CoerceSettings, ...], Field(strict=False)] = Field(
        default=(),
        description="Rules that change attributes of objects before they are stored (docs/rules.md). All "
        "that are about an object hold; of those that change one attribute, the last.",
    )
    require_attributes: Annotated[tuple[RequireAttributesSettings, ...], Field(strict=False)] = Field(
        default=(),
        description="Rules that refuse objects without certain attributes (docs/rules.md). All that are "
        "about an object hold, before anything of it is changed.",
    )
    forward: Annotated[tuple[ForwardSettings, ...], Field(strict=False)] = Field(
        default=(),
        description="Rules that send what was stored on to remotes, by C-STORE; docs/rules.md.",
    )
    webhook: Annotated[tuple[WebhookSettings, ...], Field(strict=False)] = Field(
        default=(),
        description="Rules that post what happened to a URL, as signed CloudEvents; docs/rules.md.",
    )

    @field_validator("coerce", "require_attributes", "forward", "webhook")
    @classmethod
    def _rules(cls, rules: tuple[RuleSettings, ...], info: ValidationInfo) -> tuple[RuleSettings, ...]:
        check_names(str(info.field_name), rules)
        return rules

    @field_validator("plugins")
    @classmethod
    def _plugins(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        for name in names:
            if _PLUGIN.fullmatch(name) is None:
                raise ValueError(f"{name!r} must be package.module or package.module:name")
        if len(set(names)) < len(names):
            raise ValueError("names a plug-in twice")
        return names

    @field_validator("peers")
    @classmethod
    def _peers(cls, peers: tuple[PeerSettings, ...]) -> tuple[PeerSettings, ...]:
        check_each_once(peers)
        return peers

    @property
    def most_outbound_associations(self) -> int:
        """Associations to remotes that there can be at once."""
        of_remotes = sum(remote.max_associations for remote in self.remotes)
        return min(of_remotes, self.limits.max_outbound_associations)

    @field_validator("remotes")
    @classmethod
    def _remotes(cls, remotes: tuple[RemoteSettings, ...]) -> tuple[RemoteSettings, ...]:
        check_titles(remotes)
        return remotes

    @field_validator("data_dir")
    @classmethod
    def _data_dir(cls, path: Path) -> Path:
        if "\0" in str(path):
            raise ValueError("must not contain a NUL")
        try:
            return path.expanduser()
        except RuntimeError as error:
            raise ValueError("names the home folder of an unknown user") from error

    @model_validator(mode="after")
    def _some_context_is_left(self) -> Self:
        names = self.negotiation.application_context_names
        for position, peer in enumerate(self.peers):
            if peer.dicos == "never" and DICOM_APPLICATION_CONTEXT not in names:
                raise ValueError(
                    f"peers.{position}.dicos is never, but negotiation.application_contexts lacks dicom"
                )
        return self

    @model_validator(mode="after")
    def _each_worker_can_receive(self) -> Self:
        limits, workers = self.limits, self.workers
        if workers > 1:
            if limits.process_buffer_bytes < workers * limits.association_buffer_bytes:
                raise ValueError(
                    f"limits.process_buffer_bytes is divided among {workers} workers, and each share must be "
                    "at least limits.association_buffer_bytes"
                )
            if limits.max_connections < workers:
                raise ValueError(f"limits.max_connections must be at least workers ({workers})")
        return self

    @model_validator(mode="after")
    def _forwards_to_remotes(self) -> Self:
        check_remotes(self.forward, self.remotes)
        return self

    @model_validator(mode="after")
    def _listeners_differ(self) -> Self:
        if self.listen.port and (self.listen.host, self.listen.port) == (self.http.host, self.http.port):
            raise ValueError("http.port must differ from listen.port on one host")
        return self


class Settings(SettingsTree, BaseSettings):
    """The settings of one server: arguments, then the environment (`SCP_SERVER_LISTEN__PORT`), then defaults.

    `Settings(listen={"port": 0})` suits a program; the command line uses `load_settings`, which also reads a
    file and explains every problem. Raises pydantic's ValidationError for wrong arguments, and
    ConfigurationError for a variable of the environment that no setting has.
    """

    model_config = SettingsConfigDict(extra="forbid", frozen=True, strict=True, hide_input_in_errors=True)

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        from scp_server.settings.environment import EnvironmentSource

        del env_settings, dotenv_settings, file_secret_settings
        return init_settings, EnvironmentSource(settings_cls)


def _transfer_syntax(name: str) -> tuple[str, ...]:
    return (name if name == ANY_OTHER else transfer_syntax_uid(name),)


def _sop_class(name: str) -> tuple[str, ...]:
    return (sop_class_uid(name),)


def _uids_of(resolve: Callable[[str], tuple[str, ...]], name: str) -> tuple[str, ...]:
    """What `resolve` makes of `name`, its complaint in pydantic's terms."""
    try:
        return resolve(name)
    except ConfigurationError as error:
        raise ValueError(str(error)) from error


def _some_and_each_once(values: Sequence[str]) -> None:
    if not values:
        raise ValueError("must not be empty")
    for position, value in enumerate(values):
        if value in values[:position]:
            raise ValueError(f"names {value} twice")
