"""One office's neighbours as its server keeps them: who has which address inside, and the sockets of the doorway that are served.

Outside and inside change one after the other. Outside is what counts: a neighbour that went is served no more from that moment,
whatever the office still believes. Inside (`officed`'s forwards, /etc/hosts) follows when the office is awake; one that sleeps
is told when it wakes.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tenure.errors import TenureError
from tenure.offices.log import OfficeLog
from tenure.offices.neighbours import NEIGHBOURS_MAX, Neighbour, NeighbourSource, Served
from tenure.use import Use

ADDRESSES = tuple(f"127.0.1.{number}" for number in range(1, NEIGHBOURS_MAX + 1))
HOST_PATTERN = re.compile(r"[a-z][a-z0-9-]{0,62}(\.[a-z][a-z0-9-]{0,62})+")
"""With a dot: the office's own services have none, so nothing can take their place."""
PORT_MAX = 65535

Place = tuple[str, int]
"""Host and port."""

logger = logging.getLogger(__name__)


def assign(hosts: Iterable[str], before: Mapping[str, str]) -> dict[str, str]:
    """An address for each of at most `NEIGHBOURS_MAX` hosts. Who has one `before` keeps it; the others get the one that follows
    from their name if it is free, so that a restarted server mostly comes to the same."""
    wanted = sorted(set(hosts))
    given = {host: before[host] for host in wanted if host in before}
    for host in wanted:
        first = zlib.crc32(host.encode()) % len(ADDRESSES)
        taken = set(given.values())
        free = (address for address in (*ADDRESSES[first:], *ADDRESSES[:first]) if address not in taken)
        given.setdefault(host, next(free, ""))
    return {host: address for host, address in given.items() if address}


def acceptable(neighbours: Iterable[Neighbour]) -> tuple[dict[Place, Neighbour], list[str]]:
    """Those that an office can have, the first of each place, and what is wrong with the others."""
    kept: dict[Place, Neighbour] = {}
    wrong: list[str] = []
    for neighbour in neighbours:
        place = (neighbour.host, neighbour.port)
        if not HOST_PATTERN.fullmatch(neighbour.host) or not 0 < neighbour.port <= PORT_MAX:
            wrong.append(f"{neighbour.host[:60]!r}:{neighbour.port} cannot be the name of a neighbour")
        elif place in kept:
            wrong.append(f"two neighbours are called {neighbour.host}:{neighbour.port}")
        elif len(kept) == NEIGHBOURS_MAX:
            wrong.append(f"{neighbour.host}:{neighbour.port} is one too many: an office has {NEIGHBOURS_MAX} at most")
        else:
            kept[place] = neighbour
    return kept, wrong


@dataclass(frozen=True)
class _Open:
    """A neighbour that is served."""

    socket: str
    served: Served


class Neighbourhood:
    """Of the office `agent`. `settle` changes nothing while it is closed."""

    def __init__(self, agent: str, doorway: Path, use: Use, log: OfficeLog, sources: Sequence[NeighbourSource]) -> None:
        self._agent, self._doorway, self._use, self._log, self._sources = agent, doorway, use, log, sources
        self._addresses: dict[str, str] = {}
        self._open: dict[Place, _Open] = {}
        self._is_open = False
        self._settling = asyncio.Lock()

    @property
    def hosts(self) -> dict[str, str]:
        """Addresses by host, as the office is to know them."""
        return dict(sorted(self._addresses.items()))

    @property
    def forwards(self) -> tuple[tuple[str, str], ...]:
        """(`address:port`, socket name in the doorway) of each."""
        return tuple(
            (f"{self._addresses[host]}:{port}", opened.socket) for (host, port), opened in sorted(self._open.items())
        )

    async def open(self) -> None:
        """Serves the neighbours that there are. What a dead server left in the doorway goes."""
        async with self._settling:
            if not self._is_open:
                self._is_open = True
                for path in self._doorway.glob("n*-*.sock"):
                    path.unlink(missing_ok=True)
                await self._settle()

    async def settle(self) -> None:
        """Ends those that went, with their connections, then serves those that came. A source that fails has none."""
        async with self._settling:
            if self._is_open:
                await self._settle()

    async def close(self) -> None:
        async with self._settling:
            self._is_open = False
            await self._end(list(self._open))

    async def _settle(self) -> None:
        wanted, wrong = acceptable(await self._ask())
        for what in wrong:
            self._log.write("office", f"neighbours: {what}")
        await self._end([place for place in self._open if place not in wanted])
        self._addresses = assign((host for host, _ in wanted), self._addresses)
        for place, neighbour in wanted.items():
            if place not in self._open:
                await self._begin(place, neighbour)

    async def _ask(self) -> list[Neighbour]:
        found: list[Neighbour] = []
        for source in self._sources:
            try:
                found += await source.neighbours(self._agent)
            except TenureError as error:
                self._log.write("office", f"neighbours: some are not known now, so they are not there: {error.message}")
        return found

    async def _begin(self, place: Place, neighbour: Neighbour) -> None:
        host, port = place
        socket = f"n{ADDRESSES.index(self._addresses[host]) + 1}-{port}.sock"
        try:
            served = await neighbour.serve(self._doorway / socket, self._use)
        except (TenureError, OSError) as error:
            logger.warning("serving %s:%d to %s: %s", host, port, self._agent, error)
            self._log.write("office", f"neighbours: {host}:{port} cannot be served: {error}")
            return
        self._open[place] = _Open(socket, served)

    async def _end(self, places: Sequence[Place]) -> None:
        for place in places:
            opened = self._open.pop(place)
            await opened.served.close()
            with contextlib.suppress(FileNotFoundError):
                (self._doorway / opened.socket).unlink()
