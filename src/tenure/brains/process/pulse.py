"""Whether a program that promised heartbeats still lives. Pure."""

from __future__ import annotations

from tenure.work.hands import Signals

HEARTBEAT_S_DEFAULT = 60.0
"""Of a program that began with heartbeats and never said how often."""
BEATS_MISSED_MAX = 3
"""It is taken for hung after a silence of so many heartbeats."""


class Pulse:
    """Counts only silence that somebody listened to: while the server or the worker was away nobody could hear a program, and
    a gap between two looks says nothing of it."""

    def __init__(self, promised_s: float | None, gap_s_max: float) -> None:
        self._promised_s, self._gap_s_max = promised_s, gap_s_max
        self._beats: int | None = None
        self._looked_s: float | None = None
        self.every_s: float | None = promised_s
        """How often it promised to tell of itself; None: it did not promise anything."""
        self.silent_s = 0.0

    def look(self, told: Signals, now_s: float) -> None:
        if told.heartbeats:
            self.every_s = told.heartbeat_s or self._promised_s or HEARTBEAT_S_DEFAULT
        if self._looked_s is not None:
            self.silent_s += min(now_s - self._looked_s, self._gap_s_max)
        if told.beats != self._beats:
            self.silent_s = 0.0
        self._beats, self._looked_s = told.beats, now_s

    @property
    def is_missed(self) -> bool:
        return self.every_s is not None and self.silent_s > BEATS_MISSED_MAX * self.every_s
