"""The settings of remotes, to which objects are sent: the `[[remotes]]` tables."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import Field, field_validator

from scp_server.errors import ConfigurationError
from scp_server.objects.uid_names import transfer_syntax_uid
from scp_server.settings.limits import Count, Seconds
from scp_server.settings.names import application_context_names
from scp_server.settings.section import AETitle, Host, Section, Texts


class RemoteSettings(Section):
    """One remote, and how it is spoken to. Our calling AE title is listen.ae_title."""

    ae_title: AETitle = Field(
        description="Its AE title, by which C-MOVE names it and we call it. Must be given, and once only."
    )
    host: Host = Field(description="Its address or host name. Must be given.")
    port: Annotated[int, Field(ge=1, le=65_535)] = Field(description="Its TCP port. Must be given.")
    application_context: str = Field(
        default="dicom",
        description="The application context name to propose: dicom, dicos (that of V03) or a UID. DICOS "
        "servers take none but their own.",
    )
    max_associations: Count = Field(
        default=4,
        description="Associations to it at once, idle ones too; what needs more waits. That a remote takes "
        "fewer is found out.",
    )
    connect_seconds: Seconds = Field(
        default=10.0, description="How long it may take to accept a TCP connection."
    )
    duplicates: Literal["failure", "warning"] = Field(
        default="failure",
        description="What its answer 0x0111, that it has the instance already, counts as.",
    )
    framing: Literal["standard", "glued"] = Field(
        default="standard",
        description="How a C-STORE is sent: standard as PS3.8 has it, glued with command set and data set in "
        "one PDV stream, as DICOS scanners send.",
    )
    transfer_syntaxes: Texts = Field(
        default=(),
        description="What it may be sent in, as UIDs or keywords; an object that is stored in something else "
        "is given one of them, where that loses nothing. When empty, what an object is stored in, else "
        "explicit or, but for DICOS remotes, implicit VR little endian.",
    )

    @field_validator("transfer_syntaxes")
    @classmethod
    def _transfer_syntaxes(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        try:
            uids = [transfer_syntax_uid(name) for name in names]
        except ConfigurationError as error:
            raise ValueError(str(error)) from error
        for position, uid in enumerate(uids):
            if uid in uids[:position]:
                raise ValueError(f"names {uid} twice")
        return names

    @field_validator("application_context")
    @classmethod
    def _application_context(cls, name: str) -> str:
        try:
            application_context_names(name)
        except ConfigurationError as error:
            raise ValueError(str(error)) from error
        return name

    @property
    def transfer_syntax_uids(self) -> tuple[str, ...]:
        """`transfer_syntaxes` as UIDs."""
        return tuple(map(transfer_syntax_uid, self.transfer_syntaxes))

    @property
    def application_context_name(self) -> str:
        """`application_context` as a UID."""
        return application_context_names(self.application_context)[0]


def check_titles(remotes: Sequence[RemoteSettings]) -> None:
    """Raises ValueError for a table with the AE title of one before it."""
    seen: dict[str, int] = {}
    for position, remote in enumerate(remotes):
        first = seen.setdefault(remote.ae_title, position)
        if first != position:
            raise ValueError(f"remotes.{position}.ae_title is that of remotes.{first}")
