"""Systems of the literature that KEEP and READ cannot express."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from ghostsim.config.base import Strict, Text


class Outside(Strict):
    """What is outside the algebra, and why."""

    schema_: Literal[1] = Field(1, alias="schema")
    systems: Annotated[dict[Text, Text], Field(min_length=1)]
    """The reason by the system's name."""
