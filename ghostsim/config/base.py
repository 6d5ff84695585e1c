"""What all configuration models share: strictness, plain number types, and numbers that name their source."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

Confidence = Literal["measured", "datasheet", "derived", "assumed"]

_LARGEST = 10**15
Count = Annotated[int, Field(strict=True, gt=0, le=_LARGEST)]
"""A whole number of at least one."""
Whole = Annotated[int, Field(strict=True, ge=0, le=_LARGEST)]
"""A whole number of at least zero."""
Number = Annotated[float, Field(strict=True, ge=-_LARGEST, le=_LARGEST)]
"""A dimensionless number."""
Fraction = Annotated[float, Field(strict=True, ge=0, le=1)]
"""A dimensionless number from 0 to 1."""
Text = Annotated[str, Field(min_length=1, max_length=2000)]
"""A short text."""


class MisfitError(ValueError):
    """Fields that do not fit together; `path` leads from the mapping to the value to change."""

    def __init__(self, message: str, *path: str | int) -> None:
        super().__init__(message)
        self.path = path


class Strict(BaseModel):
    """A mapping whose keys are all known and whose values never change."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, populate_by_name=True)


def holds_number(annotation: object) -> bool:
    """Tell whether a field holds a number (a count, or a quantity with a unit)."""
    if annotation in (int, float):
        return True
    return any(holds_number(part) for part in get_args(annotation) if part is not type(None))


class Block(Strict):
    """A mapping of hardware numbers that name where they come from.

    A number is either ``{value: ..., source: ..., confidence: ...}`` or bare, in which case the nearest
    enclosing block must carry `source` and `confidence`. Models hold the bare values; `provenance` in
    `ghostsim.config.catalogue` lists the sources of a document.
    """

    source: Text | None = None
    confidence: Confidence | None = None

    @model_validator(mode="before")
    @classmethod
    def _unwrap(cls, data: Any) -> Any:
        if not isinstance(data, Mapping):
            return data
        origin = {key: data[key] for key in ("source", "confidence") if data.get(key) is not None}
        if origin.get("confidence", "assumed") not in get_args(Confidence):
            origin["confidence"] = "assumed"  # the field itself is refused below, at its own place
        return {key: cls._unwrap_one(key, value, origin) for key, value in data.items()}

    @classmethod
    def _unwrap_one(cls, key: str, value: Any, origin: dict[str, Any]) -> Any:
        if isinstance(value, Mapping) and "value" in value:
            _require_source({**origin, **value}, key, value["value"])
            return value["value"]
        field = cls.model_fields.get(key)
        if isinstance(value, Mapping) and field is not None and get_origin(field.annotation) is dict:
            return {name: {**origin, **entry} if isinstance(entry, Mapping) else entry for name, entry in value.items()}
        if isinstance(value, Mapping):
            return {**origin, **value}
        if field is not None and value is not None and holds_number(field.annotation):
            _require_source(origin, key, value)
        return value


def _require_source(origin: Mapping[str, Any], key: str, value: object) -> None:
    unknown = set(origin) - {"value", "source", "confidence"}
    if unknown:
        message = "found the key {found}, expected only value, source and confidence beside a value"
        raise PydanticCustomError("quantity_key", message, {"found": min(unknown), "key": key})
    if not isinstance(origin.get("source"), str) or origin.get("confidence") not in get_args(Confidence):
        message = (
            "found {found} without a source, expected a number that says where it comes from, "
            'e.g. {value: "32 GT/s", source: "PCIe 5.0 base specification", confidence: datasheet} with '
            "confidence one of measured, datasheet, derived, assumed"
        )
        raise PydanticCustomError("unsourced", message, {"found": repr(value), "key": key})
