"""What an office reaches by name beside its own four services: shared databases and named connections that were granted to it.

Inside, a neighbour is a host name (`sales.db`) on a loopback address of its own; outside, a socket of the office's doorway that
whoever grants it serves. The office knows all of its neighbours from its boot on, and those that come or go meanwhile at once.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from tenure.use import Use

NEIGHBOURS_MAX = 64
"""Of one office."""


class Served(Protocol):
    """Something that serves one socket of a doorway."""

    async def close(self) -> None:
        """Listens no more and breaks what is connected. Idempotent."""


@dataclass(frozen=True)
class Neighbour:
    """`host` and `port` are what the office's programs connect to. `serve` listens at a socket, to which only this office comes;
    the office is in `Use` while it is connected. Two neighbours are the same when host and port are."""

    host: str
    port: int
    serve: Callable[[Path, Use], Awaitable[Served]]


class NeighbourSource(Protocol):
    """Tells an agent's neighbours of one kind, by what was granted to it."""

    async def neighbours(self, agent: str) -> Sequence[Neighbour]:
        """Cheap: asked at every wake. An agent that has none, or is none, has no neighbours."""
        ...
