"""The contract of where files come from."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Protocol

from tenure.data.ingestion.record import Target
from tenure.identity.authorize import Principal


@dataclass(frozen=True)
class Found:
    """A file that is being read. `name` tells its format and its table, `version` changes with its content."""

    name: str
    chunks: AsyncIterator[bytes]
    version: str | None = None


@dataclass(frozen=True)
class Listed:
    """A file that there is."""

    source: str
    version: str


class Sources(Protocol):
    """Addresses are `http(s)://…`, `s3://bucket/key`, and `office:path` for a file of the agent's office. All raise
    `InvalidArgument`, `NotFound`, `Forbidden`, `EgressDenied`, `EgressUnreachable`, `StorageError`."""

    def check(self, target: Target, source: str) -> None:
        """Whether it is an address at all, for this target. Does not look at what is there."""

    def open(self, target: Target, source: str, by: Principal) -> AbstractAsyncContextManager[Found]:
        """What is there, as far as `by` may read it for the target."""
        ...

    async def list(self, target: Target, source: str, by: Principal) -> Sequence[Listed]:
        """The files at an address: of a prefix in a bucket those below it, else the one that it names."""
        ...
