"""When an office was last used, and whether it is in use now: what decides how deeply it may rest.

Used means: something was done through its door, or a process in it did something through a forward, or computes. Tenure's
own probes do not count.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Protocol
from weakref import WeakSet

ANSWER_WAIT_S_MAX = 3600.0
"""How long a process that waits for an answer (a query, a model) keeps its office in use. One that forgot its connection
must not do so for good."""
BUSY_CPUS = 0.05
"""Processors in use on average from which an office counts as computing: idle ones take below 0.01, a probe included."""


class Closable(Protocol):
    """An open connection."""

    def is_closing(self) -> bool: ...


class Use:
    """Of one office. `clock` gives seconds that only grow."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._last = clock()
        self._at_work = 0
        self._held: WeakSet[Closable] = WeakSet()
        self._flows: set[Flow] = set()
        self._cpu: tuple[float, float] | None = None

    def touch(self) -> None:
        """It is used at this moment."""
        self._last = self._clock()

    @contextmanager
    def during(self) -> Generator[None]:
        """It is in use meanwhile."""
        self._at_work += 1
        try:
            yield
        finally:
            self._at_work -= 1
            self.touch()

    def while_open(self, connection: Closable) -> None:
        """It is in use until `connection` is closed, or forgotten by everybody."""
        self.touch()
        self._held.add(connection)

    def flow(self) -> Flow:
        """For a new connection from inside to the outside."""
        self.touch()
        flow = Flow(self)
        self._flows.add(flow)
        return flow

    def computed(self, cpu_s: float) -> None:
        """`cpu_s` is the processor time that the office has taken since it started, in seconds: to be told now and then."""
        now, before = self._clock(), self._cpu
        self._cpu = (now, cpu_s)
        if before is not None and now > before[0] and (cpu_s - before[1]) / (now - before[0]) >= BUSY_CPUS:
            self.touch()

    @property
    def is_in_use(self) -> bool:
        now = self._clock()
        return (
            self._at_work > 0
            or any(not connection.is_closing() for connection in self._held)
            or any(flow.waits(now) for flow in self._flows)
        )

    @property
    def idle_s(self) -> float:
        """Seconds since it was last used; 0 while it is in use."""
        if self.is_in_use:
            self.touch()
        return self._clock() - self._last

    def moved(self) -> float:
        """For a flow: touches; the time."""
        self.touch()
        return self._last

    def ended(self, flow: Flow) -> None:
        self._flows.discard(flow)


class Flow:
    """A connection from inside. It is in use while an answer is awaited on it; one on which nothing is asked (of a pool, kept
    alive) is not."""

    def __init__(self, use: Use) -> None:
        self._use = use
        self._asked_at: float | None = None

    def asked(self) -> None:
        """Bytes went out of the office."""
        self._asked_at = self._use.moved()

    def answered(self) -> None:
        """Bytes came in."""
        self._asked_at = None
        self._use.touch()

    def closed(self) -> None:
        self._asked_at = None
        self._use.ended(self)

    def waits(self, now: float) -> bool:
        return self._asked_at is not None and now - self._asked_at < ANSWER_WAIT_S_MAX
