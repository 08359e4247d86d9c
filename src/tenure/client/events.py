"""Following a run: the pure parts that both SDKs share. No clock and no I/O here but what is passed in."""

from __future__ import annotations

import json
from collections.abc import Iterator

from tenure.errors import from_payload
from tenure.wire import RunEvent

AWAY_S_MAX = 120.0
"""How long a follower waits for a server that went away: it may be being restarted, and the run goes on."""
RETRY_S = 0.5
POLL_S_MIN = 0.05
POLL_S_MAX = 1.0


def poll_waits_s() -> Iterator[float]:
    """How long to wait before each next look at a run: short at first, because many runs are."""
    wait_s = POLL_S_MIN
    while True:
        yield wait_s
        wait_s = min(wait_s * 1.5, POLL_S_MAX)


class EventDecoder:
    """Server-sent events: feed lines, get `RunEvent`s. Comments (keep-alives) and unknown fields are skipped; an event
    called "error" is raised as the `TenureError` that it carries."""

    def __init__(self) -> None:
        self._data: list[str] = []
        self._name = ""

    def feed(self, line: str) -> RunEvent | None:
        line = line.rstrip("\r\n")
        if line:
            field, _, value = line.partition(":")
            if field == "data":
                self._data.append(value.removeprefix(" "))
            elif field == "event":
                self._name = value.strip()
            return None
        data, name = "\n".join(self._data), self._name
        self._data, self._name = [], ""
        if not data:
            return None
        if name == "error":
            raise from_payload(json.loads(data))
        return RunEvent.model_validate_json(data)


class Patience:
    """Whether a follower still waits for a server that is away. Times are of any monotonic clock."""

    def __init__(self, away_s_max: float = AWAY_S_MAX) -> None:
        self._away_s_max = away_s_max
        self._since: float | None = None

    def answered(self) -> None:
        self._since = None

    def is_over(self, now_s: float) -> bool:
        """Called at each failure."""
        if self._since is None:
            self._since = now_s
        return now_s - self._since > self._away_s_max
