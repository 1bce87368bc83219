"""The settings of rules that post events: the `[[webhook]]` tables."""

from __future__ import annotations

import ipaddress
from pathlib import Path
from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import Field, SecretStr, ValidationInfo, field_validator

from scp_server.errors import ConfigurationError
from scp_server.pipeline.builtin.webhook import secret_bytes
from scp_server.settings.limits import Count, Seconds
from scp_server.settings.rules import RuleSettings
from scp_server.settings.secret_file import MAX_SECRET_BYTES, read_secret

EventName = Literal[
    "association.accepted",
    "association.ended",
    "object.stored",
    "study.settled",
    "tdr.received",
    "tdr.missing",
    "tdr.orphan",
    "decision.changed",
    "object.invalid",
]


class WebhookSettings(RuleSettings):
    """One rule: which events are posted, and where to. Needs `pip install 'scp-server[webhook]'`."""

    allow_http: bool = Field(
        default=False, description="Allow http to other machines: who listens reads all, and can change it."
    )
    url: str = Field(
        description="Where each event is posted to: https, or http to this machine. Must be given. A secret "
        "in it would be shown; redirects are not followed."
    )
    kinds: Annotated[tuple[EventName, ...], Field(strict=False)] = Field(
        default=(),
        description="association.accepted, association.ended, object.stored, study.settled, object.invalid, "
        "tdr.received, tdr.missing, tdr.orphan, decision.changed; when empty, all. Events of associations "
        "have AE titles and neither SOP class nor modality; those of studies, reports and decisions have "
        "none of all these: a rule whose filter asks for what an event has not leaves it out.",
    )
    secret: SecretStr | None = Field(
        default=None,
        description="Key of the signature (HMAC-SHA256): text, or Base64 behind whsec_. Without one nothing "
        "is signed.",
    )
    secret_file: Annotated[Path, Field(strict=False)] | None = Field(
        default=None, description="A file that holds it instead, without the line break at its end."
    )
    ca_file: Annotated[Path, Field(strict=False)] | None = Field(
        default=None, description="PEM file of the certificates that are trusted, instead of the system's."
    )
    timeout_seconds: Seconds = Field(
        default=10.0, description="How long one call may take, half of it for the connection."
    )
    concurrency: Count = Field(
        default=4,
        le=64,
        description="Calls at once. What belongs to one series comes in order all the same.",
    )

    @field_validator("url")
    @classmethod
    def _url(cls, url: str, info: ValidationInfo) -> str:
        try:
            parts = urlsplit(url)
            named = bool(parts.hostname) and parts.port != 0
        except ValueError as error:
            raise ValueError("is no URL") from error
        if parts.scheme not in ("https", "http") or not named or not url.isascii() or not url.isprintable():
            raise ValueError("must be a URL that begins with https:// or http://")
        if parts.username is not None or parts.password is not None:
            raise ValueError("must hold no user name and no password")
        is_private = parts.scheme == "https" or _is_loopback(str(parts.hostname))
        if not (is_private or info.data.get("allow_http")):
            raise ValueError("must be https, unless allow_http is true")
        return url

    @field_validator("kinds")
    @classmethod
    def _kinds(cls, kinds: tuple[EventName, ...]) -> tuple[EventName, ...]:
        if len(set(kinds)) < len(kinds):
            raise ValueError("names a kind twice")
        return kinds

    @field_validator("secret")
    @classmethod
    def _secret(cls, secret: SecretStr | None) -> SecretStr | None:
        if secret is not None:
            _key(secret.get_secret_value())
        return secret

    @field_validator("secret_file")
    @classmethod
    def _secret_file(cls, path: Path | None, info: ValidationInfo) -> Path | None:
        if path is not None and info.data.get("secret") is not None:
            raise ValueError("must not be given beside secret")
        return path

    @property
    def signing_key(self) -> bytes | None:
        """The bytes of the secret, read from its file where it has one. Raises ConfigurationError."""
        if self.secret is not None:
            return _key(self.secret.get_secret_value())
        if self.secret_file is None:
            return None
        where = f"webhook {self.name}: secret_file"
        text = read_secret(self.secret_file, where)
        try:
            return _key(text)
        except ValueError as error:
            raise ConfigurationError(f"{where} {self.secret_file} {error}") from error


def _key(secret: str) -> bytes:
    """Raises ValueError that does not name the secret."""
    try:
        key = secret_bytes(secret)
    except ValueError:
        raise ValueError("must have Base64 behind whsec_") from None
    if not key:
        raise ValueError("must not be empty")
    if len(key) > MAX_SECRET_BYTES:
        raise ValueError(f"must have at most {MAX_SECRET_BYTES} bytes")
    return key


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
