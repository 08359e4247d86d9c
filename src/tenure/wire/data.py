"""What is asked of a database beyond plain SQL, as it travels: schema, samples, profiles, saved results, search."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from pydantic import Field

from tenure.wire import STATEMENT_CHARS_MAX, Answer, Request, SqlResult

TABLE_CHARS_MAX = 200
CONDITION_CHARS_MAX = 10_000
COLUMNS_MAX = 100
SAMPLE_ROWS_MAX = 1000
READ_ROWS_MAX = 10_000
HITS_MAX = 100
SEARCH_CHARS_MAX = 2000
SEED_MAX = 2**31 - 1


# --- describe ----------------------------------------------------------------------------------------------------------
class DataColumn(Answer):
    name: str
    type: str
    nullable: bool
    default: str | None = None
    generated: str | None = None
    comment: str | None = None
    values: list[str] | None = None
    """Of an enumeration."""


class DataForeignKey(Answer):
    columns: list[str]
    table: str
    references: list[str]


class DataIndex(Answer):
    name: str
    definition: str
    unique: bool
    valid: bool
    size_bytes: int


class DataTable(Answer):
    """See `tenure.data.query.describe.Table`."""

    in_schema: str
    name: str
    kind: str
    rows_estimate: int | None = None
    size_bytes: int
    comment: str | None = None
    columns: list[DataColumn]
    columns_left_out: int = 0
    primary_key: list[str]
    unique_keys: list[list[str]]
    foreign_keys: list[DataForeignKey]
    checks: list[str]
    indexes: list[DataIndex]
    definition: str | None = None


class DataExtension(Answer):
    name: str
    version: str
    installed: bool
    comment: str | None = None


class DataSchema(Answer):
    tables: list[DataTable]
    more: bool
    """There are more tables than these."""
    extensions: list[DataExtension]
    size_bytes: int


# --- sample and profile ------------------------------------------------------------------------------------------------
class SampleRequest(Request):
    """`POST …/data/sample`"""

    table: str = Field(min_length=1, max_length=TABLE_CHARS_MAX)
    """Its name as it is, without quotes; or SCHEMA.NAME."""
    rows: int = Field(default=20, ge=1, le=SAMPLE_ROWS_MAX)
    seed: int = Field(default=0, ge=0, le=SEED_MAX)
    """The same rows for the same seed, while the table does not change."""
    columns: list[str] = Field(default_factory=list[str], max_length=COLUMNS_MAX)
    where: str | None = Field(default=None, max_length=CONDITION_CHARS_MAX)
    """A condition in SQL, as after WHERE."""


class ProfileRequest(Request):
    """`POST …/data/profile`"""

    table: str = Field(min_length=1, max_length=TABLE_CHARS_MAX)
    columns: list[str] = Field(default_factory=list[str], max_length=COLUMNS_MAX)
    where: str | None = Field(default=None, max_length=CONDITION_CHARS_MAX)
    seed: int = Field(default=0, ge=0, le=SEED_MAX)


class DataBucket(Answer):
    low: Any
    high: Any
    count: int


class DataTopValue(Answer):
    value: str
    count: int


class ColumnProfile(Answer):
    """See `tenure.data.query.profile.ColumnProfile`."""

    name: str
    type: str
    nulls: int
    distinct: int
    min: Any = None
    max: Any = None
    mean: float | None = None
    stddev: float | None = None
    quantiles: dict[str, Any] = Field(default_factory=dict[str, Any])
    histogram: list[DataBucket] = Field(default_factory=list[DataBucket])
    top: list[DataTopValue] = Field(default_factory=list[DataTopValue])
    length_min: int | None = None
    length_max: int | None = None
    length_mean: float | None = None
    empty: int | None = None


class DataProfile(Answer):
    in_schema: str
    table: str
    rows: int
    """Looked at."""
    rows_estimate: int | None = None
    """Of the whole table."""
    sampled: bool
    columns: list[ColumnProfile]
    columns_left_out: list[str]


# --- results -----------------------------------------------------------------------------------------------------------
class ResultRequest(Request):
    """`PUT …/data/results/{result}`"""

    query: str = Field(min_length=1, max_length=STATEMENT_CHARS_MAX)
    """One SELECT, WITH, VALUES or TABLE."""
    expires_s: float | None = Field(default=None, gt=0, le=10 * 365 * 86400.0)
    key: str | None = Field(default=None, min_length=1, max_length=200)
    """Saved once per key."""


class ResultReadRequest(Request):
    """`POST …/data/results/{result}/rows`"""

    rows: int = Field(default=100, ge=0, le=READ_ROWS_MAX)
    offset: int = Field(default=0, ge=0, le=2**53)
    where: str | None = Field(default=None, max_length=CONDITION_CHARS_MAX)


class SavedResult(Answer):
    name: str
    table: str
    """As SQL calls it."""
    query: str
    made_by: str
    made_at: datetime
    expires_at: datetime | None = None
    columns: list[str]
    rows_estimate: int | None = None
    size_bytes: int


class SavedResultList(Answer):
    results: list[SavedResult]
    """The newest first."""


# --- search ------------------------------------------------------------------------------------------------------------
class SearchIndexRequest(Request):
    """`PUT …/data/search/{index}`"""

    table: str = Field(min_length=1, max_length=TABLE_CHARS_MAX)
    columns: list[str] = Field(min_length=1, max_length=16)
    model: str | None = Field(default=None, max_length=200)
    """None: what the server is set up with, or "local"."""


class SearchIndex(Answer):
    name: str
    table: str
    """As SQL calls it; empty when it is gone."""
    columns: list[str]
    model: str
    dimension: int
    rows: int
    pending: int
    """Rows changed since they were last looked at; a search brings them in, or a refresh."""
    made_by: str
    made_at: datetime


class SearchIndexList(Answer):
    indexes: list[SearchIndex]
    models: list[str]
    """What this server can make an index with, the one that is taken first."""


class SearchRequest(Request):
    """`POST …/data/search`"""

    index: str | None = Field(default=None, max_length=40)
    """None: the only one there is."""
    query: str = Field(min_length=1, max_length=SEARCH_CHARS_MAX)
    limit: int = Field(default=10, ge=1, le=HITS_MAX)
    where: str | None = Field(default=None, max_length=CONDITION_CHARS_MAX)
    columns: list[str] = Field(default_factory=list[str], max_length=50)
    """Of the table, to be told of each row beside its text."""


class SearchHit(Answer):
    key: dict[str, Any]
    score: float
    similarity: float
    text: str
    row: dict[str, Any]


class SearchFound(Answer):
    hits: list[SearchHit]
    """Best first."""
    index: str
    model: str
    pending: int


# --- questions ---------------------------------------------------------------------------------------------------------
class DescribeRequest(Request):
    """Of the question "describe"."""

    table: str | None = Field(default=None, min_length=1, max_length=TABLE_CHARS_MAX)
    like: str | None = Field(default=None, max_length=TABLE_CHARS_MAX)
    limit: int = Field(default=100, ge=1, le=500)


class NamedResultRequest(ResultRequest):
    """Of the question "save_result"."""

    name: str


class NamedReadRequest(ResultReadRequest):
    """Of the question "read_result"."""

    name: str


class ListRequest(Request):
    """Of the questions that ask for a list."""


class NamedIndexRequest(SearchIndexRequest):
    """Of the question "create_index"."""

    name: str


QUESTIONS: Mapping[str, tuple[type[Request], type[Answer]]] = {
    "describe": (DescribeRequest, DataSchema),
    "sample": (SampleRequest, SqlResult),
    "profile": (ProfileRequest, DataProfile),
    "save_result": (NamedResultRequest, SavedResult),
    "list_results": (ListRequest, SavedResultList),
    "read_result": (NamedReadRequest, SqlResult),
    "list_indexes": (ListRequest, SearchIndexList),
    "create_index": (NamedIndexRequest, SearchIndex),
    "search": (SearchRequest, SearchFound),
}
"""What brains ask, by name: the models of the arguments and of the answer."""
