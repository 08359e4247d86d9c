"""PostgreSQL's values as JSON values. Pure."""

from __future__ import annotations

import base64
import math
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from typing import Any

import psycopg
from psycopg.adapt import Transformer
from psycopg.pq import Format

INTEGER_EXACT_MAX = 2**53
"""Up to here every JSON reader keeps an integer."""


class JsonValues:
    """Turns text-format values of one result into JSON-ready ones.

    Booleans, integers and floats as such (NaN and infinities as strings); numeric as a number where a float holds it
    exactly, else as a string; dates and times in ISO 8601; json as its value; bytea in base64; arrays as lists; NULL as
    null; everything else as PostgreSQL writes it.
    """

    def __init__(self, oids: list[int]) -> None:
        transformer = Transformer()
        self._loaders = [transformer.get_loader(oid, Format.TEXT) for oid in oids]

    def row(self, values: list[bytes | None]) -> list[Any]:
        return [
            None if value is None else self._value(loader, value)
            for loader, value in zip(self._loaders, values, strict=True)
        ]

    def _value(self, loader: Any, value: bytes) -> Any:
        try:
            return to_json(loader.load(value))
        except (psycopg.Error, ValueError, OverflowError, RecursionError):
            return value.decode("utf-8", "replace")  # such as dates past year 9999


def to_json(value: Any) -> Any:
    """`value` as Python's json module writes it without losing anything."""
    if value is None or isinstance(value, bool | str):
        return value
    if isinstance(value, int):
        return value if abs(value) <= INTEGER_EXACT_MAX else str(value)
    if isinstance(value, float):
        return value if math.isfinite(value) else _name(value)
    if isinstance(value, Decimal):
        return _decimal(value)
    if isinstance(value, datetime | date | time):
        return value.isoformat()
    if isinstance(value, timedelta):
        return value.total_seconds()
    if isinstance(value, bytes):
        return base64.b64encode(value).decode("ascii")
    if isinstance(value, list | tuple):
        return [to_json(item) for item in value]  # pyright: ignore[reportUnknownVariableType]
    if isinstance(value, dict):
        return {str(key): to_json(item) for key, item in value.items()}  # pyright: ignore[reportUnknownVariableType, reportUnknownArgumentType]
    return str(value)


def _decimal(value: Decimal) -> int | float | str:
    if not value.is_finite():
        return _name(float(value))
    if value == value.to_integral_value() and value.as_tuple().exponent == 0 and abs(value) <= INTEGER_EXACT_MAX:
        return int(value)
    number = float(value)
    return number if Decimal(repr(number)) == value else str(value)


def _name(value: float) -> str:
    if math.isnan(value):
        return "NaN"
    return "Infinity" if value > 0 else "-Infinity"
