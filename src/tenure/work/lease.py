"""A worker's hold on one run, as the worker itself can know it: a deadline that only a renewal moves."""

from __future__ import annotations

import asyncio
import time

from tenure.errors import LeaseLost


def clock_s() -> float:
    """Seconds that go on while the process is stopped or the machine sleeps."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class Lease:
    """`check` before each effect keeps a worker that was stopped for too long from acting on a run that is another's by now.
    It is the second lock: the journal's fence and the effects' keys hold without it."""

    def __init__(self, run_id: str, lease_s: float, began_s: float) -> None:
        self.run_id = run_id
        self._lease_s = lease_s
        self._until_s = began_s + lease_s
        self.seen_seq = 0
        """How much of the journal the driver knows."""
        self.news = asyncio.Event()
        """Set when somebody else wrote into the journal."""

    def renewed(self, asked_s: float, last_seq: int) -> None:
        """The database extended the lease, at some time after `asked_s`."""
        self._until_s = asked_s + self._lease_s
        if last_seq > self.seen_seq:
            self.news.set()

    def lose(self) -> None:
        self._until_s = float("-inf")

    def check(self) -> None:
        """Raises `LeaseLost` when somebody else may hold the run."""
        if clock_s() >= self._until_s:
            raise LeaseLost(f"This worker's claim on {self.run_id} has lapsed.")
