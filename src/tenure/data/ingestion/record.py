"""A load as its row says it is. Pure."""

from __future__ import annotations

import json
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final, Literal

from tenure.data.ingestion import evolve
from tenure.data.ingestion.evolve import Change
from tenure.data.ingestion.loader import Order
from tenure.data.ingestion.names import parse_table
from tenure.data.ingestion.plan import Hints, Plan, plan_from
from tenure.errors import InvalidArgument

State = Literal["receiving", "queued", "running", "waiting", "done", "failed", "cancelled"]
OVER: Final = frozenset({"done", "failed", "cancelled"})
UNDER_WAY: Final = ("receiving", "queued", "running")


@dataclass(frozen=True)
class Target:
    """The database of an agent, or a shared one: exactly one of both."""

    agent: str = ""
    database: str = ""

    @property
    def kind(self) -> str:
        return "agent" if self.agent else "database"

    @property
    def name(self) -> str:
        return self.agent or self.database

    def __str__(self) -> str:
        return self.agent or f"the database {self.database}"


@dataclass(frozen=True)
class Wanted:
    """How a file is to be loaded. `into` None: into a table called like the file. `key` makes it happen once, whatever the
    caller does again."""

    into: str | None = None
    mode: str = "append"
    keys: tuple[str, ...] = ()
    policy: str = "ask"
    hints: Hints = field(default_factory=Hints)
    again: bool = False
    key: str | None = None

    def check(self) -> Wanted:
        """Raises `InvalidArgument`."""
        if self.policy not in evolve.POLICIES:
            raise InvalidArgument(
                f"{self.policy!r} says nothing about changes of a table.", hint=f"One of: {', '.join(evolve.POLICIES)}."
            )
        Order("", parse_table(self.into or "loaded"), "", self.mode, self.keys, self.hints).check()
        return self


@dataclass(frozen=True)
class LoadRecord:
    id: str
    target: Target
    into_table: str
    mode: str
    keys: tuple[str, ...]
    policy: str
    hints: Hints
    again: bool
    source: str
    name: str
    version: str | None
    key: str | None
    digest: str | None
    state: State
    allowed: bool
    attempts: int
    plan: Plan | None
    size_bytes: int
    rows_loaded: int | None
    rows_rejected: int | None
    columns: tuple[tuple[str, str], ...] | None
    changes: tuple[Mapping[str, Any], ...]
    repeats: str | None
    error: Mapping[str, Any] | None
    pipeline: str | None
    created_by: str
    created_at: datetime
    finished_at: datetime | None
    read_bytes: int = 0
    """How far the parser has come, while it runs."""

    @property
    def agent(self) -> str | None:
        return self.target.agent or None

    @property
    def database(self) -> str | None:
        return self.target.database or None

    @property
    def is_over(self) -> bool:
        return self.state in OVER

    @property
    def rejects_table(self) -> str | None:
        return str(parse_table(self.into_table).rejects) if self.rows_rejected else None

    @property
    def question(self) -> str | None:
        if self.state != "waiting":
            return None
        return evolve.question(self.into_table, [Change(**change) for change in self.changes])

    @property
    def order(self) -> Order:
        return Order(
            self.id, parse_table(self.into_table), self.digest or "", self.mode, self.keys, self.hints, self.again
        )


def record_from(row: Mapping[str, Any]) -> LoadRecord:
    values: dict[str, Any] = dict(row)
    target = Target(values.pop("agent") or "", values.pop("database") or "")
    columns = values["columns"]
    values |= {
        "target": target,
        "keys": tuple(values["keys"]),
        "hints": Hints(**values["hints"]),
        "plan": None if values["plan"] is None else plan_from(json.dumps(values["plan"])),
        "columns": None if columns is None else tuple((name, kind) for name, kind in columns),
        "changes": tuple(values["changes"]),
    }
    return LoadRecord(**values)


def new_load_id() -> str:
    return f"load_{secrets.token_hex(8)}"
