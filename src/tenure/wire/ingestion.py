"""Loads and pipelines of ingestion, as they travel."""

from __future__ import annotations

import json
from datetime import datetime
from typing import Any, Literal

from pydantic import Field, field_validator

from tenure.wire import Answer, Request

SOURCE_CHARS_MAX = 2000
KEYS_MAX = 32
NAME_CHARS_MAX = 200
LoadMode = Literal["append", "replace", "upsert"]
SchemaPolicy = Literal["ask", "allow", "strict"]
FileFormat = Literal["csv", "tsv", "json", "ndjson", "parquet", "excel"]
LoadState = Literal["receiving", "queued", "running", "waiting", "done", "failed", "cancelled"]
OVER = frozenset({"done", "failed", "cancelled"})


class LoadOptions(Request):
    """How a file is loaded. What is not said of it is found out."""

    into: str | None = Field(default=None, max_length=200)
    """`table` or `schema.table`. None: a table called like the file."""
    mode: LoadMode = "append"
    keys: list[str] = Field(default_factory=list[str], max_length=KEYS_MAX)
    """Columns of the key, for upsert."""
    schema_policy: SchemaPolicy = "ask"
    """What happens when the table does not fit: the load waits for an answer, changes the table, or fails."""
    format: FileFormat | None = None
    delimiter: str | None = Field(default=None, max_length=2)
    quote: str | None = Field(default=None, max_length=1)
    encoding: str | None = Field(default=None, max_length=40)
    header: bool | None = None
    sheet: str | None = Field(default=None, max_length=200)
    """Of a spreadsheet; None: the first."""
    again: bool = False
    """Also when the same content was loaded before."""
    key: str | None = Field(default=None, min_length=1, max_length=500)
    """Once by key: asked for again, it is the load of the first time."""

    @field_validator("keys", mode="before")
    @classmethod
    def _listed(cls, value: Any) -> Any:
        """In an address: names with commas between, or a list in JSON."""
        if not isinstance(value, list) or len(value) != 1 or not isinstance(value[0], str):  # pyright: ignore
            return value  # pyright: ignore
        text: str = value[0]
        if text.startswith("["):
            try:
                return json.loads(text)
            except ValueError:
                return value  # pyright: ignore
        return value  # pyright: ignore


class LoadRequest(LoadOptions):
    """`POST …/loads/from`: loads what is at `source`."""

    source: str = Field(min_length=1, max_length=SOURCE_CHARS_MAX)
    """`http(s)://…`, `s3://bucket/key`, or `office:path` for a file of the agent's office."""


class LoadAnswer(Request):
    allow: bool


class LoadColumn(Answer):
    name: str
    type: str


class Load(Answer):
    """A file on its way into a table, or there."""

    id: str
    agent: str | None = None
    database: str | None = None
    into: str
    mode: LoadMode
    source: str
    state: LoadState
    size_bytes: int = 0
    read_bytes: int = 0
    """How far it has come, of `size_bytes` once those are known."""
    rows_loaded: int | None = None
    rows_rejected: int | None = None
    rejects: str | None = None
    """The table with the rows that were rejected, when there are any."""
    columns: list[LoadColumn] | None = None
    changes: list[str] = Field(default_factory=list[str])
    """What was changed of the table."""
    question: str | None = None
    """What it waits for an answer to."""
    repeats: str | None = None
    """The earlier load by which this content was loaded already: then nothing was done."""
    digest: str | None = None
    """SHA-256 of the content."""
    error: dict[str, Any] | None = None
    pipeline: str | None = None
    created_at: datetime
    finished_at: datetime | None = None


class LoadList(Answer):
    loads: list[Load]


class PipelineRequest(LoadOptions):
    """`POST /v1/pipelines`. At most one of `every_s` and `cron`; with `on_arrival` also whenever an object arrives."""

    name: str
    agent: str | None = None
    database: str | None = None
    source: str = Field(min_length=1, max_length=SOURCE_CHARS_MAX)
    """As of a load; an address in S3 that ends with "/" stands for all objects below it."""
    every_s: int | None = None
    cron: str | None = Field(default=None, max_length=200)
    tz: str = Field(default="UTC", max_length=64)
    on_arrival: bool = False


class Pipeline(Answer):
    name: str
    agent: str | None = None
    database: str | None = None
    source: str
    into: str | None = None
    mode: LoadMode
    every_s: int | None = None
    cron: str | None = None
    tz: str = "UTC"
    on_arrival: bool = False
    paused: bool = False
    next_at: datetime | None = None
    last_at: datetime | None = None
    last_error: str | None = None
    failures: int = 0
    created_by: str
    created_at: datetime


class PipelineList(Answer):
    pipelines: list[Pipeline]
