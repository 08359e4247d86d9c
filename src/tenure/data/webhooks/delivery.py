"""One delivery, and the statements by which it is stored and read in an agent's database.

What a stranger sent goes into SQL as hexadecimal digits alone: an agent may have set its database to read strings in other ways.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

TABLE = "webhooks.deliveries"
CREATE = f"""
create schema if not exists webhooks;
create table if not exists {TABLE} (
    id text primary key,
    hook text not null,
    received_at timestamptz not null,
    headers jsonb not null,
    body bytea not null,
    json jsonb,
    signature text not null,
    dedupe text,
    unique (hook, dedupe)
);
create index if not exists deliveries_of_hook on {TABLE} (hook, received_at)
"""
LIST_MAX = 500
NOT_KEPT = frozenset({"authorization", "proxy-authorization", "cookie"})
"""Headers whose value is not stored: they are good for more than this delivery."""
_SPOOLED = ("id", "hook", "agent", "received_at", "headers", "is_json", "signature", "dedupe")


@dataclass(frozen=True)
class Delivery:
    id: str
    hook: str
    """The hook's name."""
    agent: str
    received_at: datetime
    headers: Mapping[str, str]
    body: bytes
    is_json: bool
    signature: str
    """"valid", or "none" when the hook asks for no signature."""
    dedupe: str | None

    def to_bytes(self) -> bytes:
        """A line of JSON, then the body."""
        head = {name: getattr(self, name) for name in _SPOOLED} | {"received_at": self.received_at.isoformat()}
        return json.dumps(head).encode() + b"\n" + self.body


def from_bytes(data: bytes) -> Delivery:
    """The inverse of `Delivery.to_bytes`. Raises `ValueError`, `KeyError`."""
    head, newline, body = data.partition(b"\n")
    if not newline:
        raise ValueError("the file has no body")
    fields = json.loads(head)
    fields["received_at"] = datetime.fromisoformat(fields["received_at"])
    return Delivery(body=body, **{name: fields[name] for name in _SPOOLED})


def kept_headers(headers: Mapping[str, str]) -> dict[str, str]:
    """As they are stored."""
    return {
        name: "[not kept]" if name in NOT_KEPT else value.replace("\x00", "\ufffd") for name, value in headers.items()
    }


def _hex(data: bytes) -> str:
    return f"pg_catalog.decode('{data.hex()}', 'hex')"


def quoted(text: str) -> str:
    """The text as an expression of SQL, whatever is in it."""
    return f"pg_catalog.convert_from({_hex(text.encode())}, 'UTF8')"


def insert(delivery: Delivery) -> str:
    """Stores it, unless it is there; one row of its id when it was not. Committed to disk, whatever the agent has set."""
    meta = {
        "id": delivery.id,
        "hook": delivery.hook,
        "at": delivery.received_at.isoformat(),
        "headers": dict(delivery.headers),
        "is_json": delivery.is_json,
        "signature": delivery.signature,
        "dedupe": delivery.dedupe,
    }
    # Materialized: else the planner would read the body as JSON before it was asked whether it is any.
    return f"""
select pg_catalog.set_config('synchronous_commit', 'on', true);
with given as materialized (select {_hex(delivery.body)} as body, {quoted(json.dumps(meta))}::pg_catalog.jsonb as m)
insert into {TABLE} (id, hook, received_at, headers, body, json, signature, dedupe)
select m->>'id', m->>'hook', (m->>'at')::pg_catalog.timestamptz, m->'headers', body,
    case when (m->>'is_json')::pg_catalog.bool then
        case when pg_catalog.pg_input_is_valid(pg_catalog.convert_from(body, 'UTF8'), 'jsonb')
            then pg_catalog.convert_from(body, 'UTF8')::pg_catalog.jsonb end
    end,
    m->>'signature', m->>'dedupe'
from given on conflict do nothing returning id"""


def forget(hook: str, keep: timedelta) -> str:
    """Deletes those of the hook that are older than that."""
    return (
        f"delete from {TABLE} where hook = {quoted(hook)} "
        f"and received_at < pg_catalog.now() - interval '{int(keep.total_seconds())} seconds'"
    )


def select(hook: str, limit: int) -> str:
    """Those of a hook, the latest first, without bodies."""
    return (
        "select id, hook, received_at, pg_catalog.octet_length(body) as size_bytes, "
        "headers->>'content-type' as content_type, signature, dedupe "
        f"from {TABLE} where hook = {quoted(hook)} order by received_at desc, id limit {min(limit, LIST_MAX)}"
    )


def select_one(hook: str, delivery_id: str) -> str:
    return (
        "select id, hook, received_at, pg_catalog.octet_length(body) as size_bytes, "
        "headers->>'content-type' as content_type, signature, dedupe, headers, "
        f"pg_catalog.encode(body, 'base64') as body from {TABLE} "
        f"where hook = {quoted(hook)} and id = {quoted(delivery_id)}"
    )


def rows_of(columns: list[str], rows: list[list[Any]]) -> list[dict[str, Any]]:
    return [dict(zip(columns, row, strict=True)) for row in rows]
