"""What all sections of the settings have in common."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field


class Section(BaseModel):
    """One table of the settings. Unknown keys are errors, values have their exact type, nothing changes."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, hide_input_in_errors=True)


Texts = Annotated[tuple[Annotated[str, Field(strict=True)], ...], Field(strict=False)]
"""A list of strings."""
