"""What is measured, beside what."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Figure:
    """Medians in milliseconds (or per second, for `steps`), and their ratio; `aim` is what the project asks of itself."""

    what: str
    measured: float
    floor: float
    unit: str
    aim: str

    @property
    def ratio(self) -> float:
        return self.measured / self.floor


def in_turns(rounds: int, one: Callable[[], float], other: Callable[[], float]) -> tuple[float, float]:
    """Medians of both in milliseconds, measured alternately so that noise meets both alike."""
    pairs = [(one(), other()) for _ in range(rounds)]
    return tuple(statistics.median(column) * 1000 for column in zip(*pairs, strict=True))  # type: ignore[return-value]


def timed(action: Callable[[], object]) -> float:
    began = time.perf_counter()
    action()
    return time.perf_counter() - began
