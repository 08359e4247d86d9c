"""What was found out about a file: enough to read it the same way twice. Pure."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import Any, Final, Literal

from tenure.errors import InvalidArgument

FORMATS: Final = ("csv", "tsv", "json", "ndjson", "parquet", "excel")
Format = Literal["csv", "tsv", "json", "ndjson", "parquet", "excel"]


@dataclass(frozen=True)
class Hints:
    """What the caller knows of the file; what is empty is found out."""

    format: str = ""
    delimiter: str = ""
    quote: str = ""
    encoding: str = ""
    header: bool | None = None
    sheet: str = ""

    def check(self) -> Hints:
        """Raises `InvalidArgument`."""
        if self.format and self.format not in FORMATS:
            raise InvalidArgument(f"{self.format!r} is not a format.", hint=f"One of: {', '.join(FORMATS)}.")
        for name, value in (("delimiter", self.delimiter), ("quote", self.quote)):
            if value and (len(value) != 1 or value in "\r\n\0" or "\ud800" <= value <= "\udfff"):
                raise InvalidArgument(f"The {name} is one character.", hint="A tab is written as a tab, or as \\t.")
        if self.delimiter and self.delimiter == self.quote:
            raise InvalidArgument("Delimiter and quote are the same.")
        return self


@dataclass(frozen=True)
class Column:
    """`source` is what the file calls it, `name` what the table will. `seen`: it had values, which tell the type."""

    source: str
    name: str
    type: str
    seen: bool = True


@dataclass(frozen=True)
class Plan:
    format: str
    columns: tuple[Column, ...]
    compression: str | None = None
    encoding: str = "utf-8"
    delimiter: str = ","
    quote: str = '"'
    escape: str = ""
    header: bool = True
    skip: int = 0
    sheet: str = ""

    @property
    def text(self) -> str:
        return json.dumps(asdict(self))


def plan_from(text: str | bytes) -> Plan:
    found: dict[str, Any] = json.loads(text)
    found["columns"] = tuple(Column(**column) for column in found["columns"])
    return Plan(**found)


@dataclass(frozen=True)
class Outcome:
    """Of reading all of a file. `again`: the plan did not fit (a column turned out to be of another type, fields turned up that
    the beginning of the file did not have), so that nothing of it counts, and this one will."""

    rows: int = 0
    rejects: int = 0
    again: Plan | None = None
    details: dict[str, Any] = field(default_factory=dict[str, Any])
