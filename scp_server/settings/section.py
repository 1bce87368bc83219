"""What all sections of the settings have in common."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field


class Section(BaseModel):
    """One table of the settings. Unknown keys are errors, values have their exact type, nothing changes."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, hide_input_in_errors=True)


Texts = Annotated[tuple[Annotated[str, Field(strict=True)], ...], Field(strict=False)]
"""A list of strings."""


def _host(text: str) -> str:
    if not text or not text.isprintable() or " " in text:
        raise ValueError("must be a host name or an address")
    return text


Host = Annotated[str, AfterValidator(_host)]
Port = Annotated[int, Field(ge=0, le=65_535)]

MAX_AE_TITLE_CHARACTERS = 16


def ae_title(text: str) -> str:
    """Check an AE title of ours (PS3.5 6.2, VR AE). Raises ValueError."""
    title = text.strip(" ")
    if not title:
        raise ValueError("must not be blank")
    if len(title) > MAX_AE_TITLE_CHARACTERS:
        raise ValueError(f"must have at most {MAX_AE_TITLE_CHARACTERS} characters, not {len(title)}")
    if not (title.isascii() and title.isprintable()) or "\\" in title:
        raise ValueError("must be printable ASCII without a backslash")
    return title


AETitle = Annotated[str, AfterValidator(ae_title)]
