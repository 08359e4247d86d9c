"""Which connections may wait to authenticate. Pure: who holds the sockets closes those that are told to go."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)

PENDING_MAX = 64
PENDING_PER_SOURCE_MAX = 24
CONNECTIONS_MAX = 512
"""Of those who have authenticated."""


class Arrivals(Generic[K]):
    """Strangers wait in a bounded room; whoever comes when it is full takes the place of the one who has waited longest. So
    holding connections open keeps nobody out, and those who authenticated are never sent away for a stranger."""

    def __init__(
        self,
        pending_max: int = PENDING_MAX,
        per_source_max: int = PENDING_PER_SOURCE_MAX,
        connections_max: int = CONNECTIONS_MAX,
    ) -> None:
        self._pending_max, self._per_source_max, self._connections_max = pending_max, per_source_max, connections_max
        self._pending: dict[K, str] = {}  # in the order of arrival
        self._of_source: Counter[str] = Counter()
        self._known: set[K] = set()

    def arrived(self, who: K, source: str) -> K | None:
        """A stranger from the address `source`; who has to go for them, if anybody."""
        gone = None
        if self._of_source[source] >= self._per_source_max:
            gone = next(one for one, at in self._pending.items() if at == source)
        elif len(self._pending) >= self._pending_max:
            gone = next(iter(self._pending))
        if gone is not None:
            self.left(gone)
        self._pending[who] = source
        self._of_source[source] += 1
        return gone

    def authenticated(self, who: K) -> bool:
        """They are no stranger any more. False when there is no room for another."""
        self.left(who)
        if len(self._known) >= self._connections_max:
            return False
        self._known.add(who)
        return True

    def left(self, who: K) -> None:
        """May be told again."""
        self._known.discard(who)
        source = self._pending.pop(who, None)
        if source is not None:
            self._of_source[source] -= 1
            if not self._of_source[source]:
                del self._of_source[source]

    def all(self) -> list[K]:
        return [*self._pending, *self._known]

    def __len__(self) -> int:
        return len(self._pending) + len(self._known)
