"""What each attempt of a run's steps printed, read from the run's journal. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from tenure.cli.output import human_duration, printable
from tenure.cli.timeline import Paint, plain
from tenure.wire import RunEvent

ATTEMPT_KINDS = ("step_started", "effect_done", "step_succeeded", "step_failed", "step_unverified")
"""What `render_attempts` tells."""
_ENDS = {"step_succeeded": "succeeded", "step_failed": "failed", "step_unverified": "unverified"}


@dataclass
class Attempt:
    """`output` is the last part of what was printed, as far as the journal keeps it."""

    step: str
    number: int
    state: str = "running"
    started_at: datetime | None = None
    ended_at: datetime | None = None
    exit_code: int | None = None
    output: str = ""
    error: str = ""
    verified: str = ""
    """Which checks held."""

    def to_json(self) -> dict[str, Any]:
        moments = {"started_at": self.started_at, "ended_at": self.ended_at}
        return {**vars(self), **{name: moment.isoformat() if moment else None for name, moment in moments.items()}}


def attempts_of(events: Iterable[RunEvent]) -> dict[str, list[Attempt]]:
    """The attempts of each step, in their order."""
    found: dict[str, list[Attempt]] = {}
    for event in events:
        if event.step is None or not event.kind.startswith(("step_", "effect_")) or "attempt" not in event.data:
            continue
        attempts = found.setdefault(event.step, [])
        number = int(event.data["attempt"])
        if not attempts or attempts[-1].number != number:
            attempts.append(Attempt(event.step, number, started_at=event.at))
        _apply(attempts[-1], event)
    return found


def _apply(attempt: Attempt, event: RunEvent) -> None:
    result: Mapping[str, Any] = event.data.get("result") or {}
    failure: Mapping[str, Any] = event.data.get("failure") or {}
    attempt.output = result.get("output") or failure.get("evidence") or attempt.output
    attempt.error = failure.get("message", "")
    attempt.verified = event.data.get("evidence") or attempt.verified
    for source in (result, failure):
        if source.get("exit_code") is not None:
            attempt.exit_code = source["exit_code"]
    if event.kind in _ENDS:
        attempt.state, attempt.ended_at = _ENDS[event.kind], event.at


def render_attempts(attempts: Iterable[Attempt], paint: Paint = plain) -> list[str]:
    """Each attempt with all of its output."""
    lines: list[str] = []
    for attempt in attempts:
        style = {"succeeded": "green", "failed": "red", "unverified": "yellow"}.get(attempt.state, "cyan")
        head = f"{attempt.step}, attempt {attempt.number}: {paint(attempt.state, style)}"
        if attempt.started_at and attempt.ended_at:
            head += f" after {human_duration((attempt.ended_at - attempt.started_at).total_seconds())}"
        if attempt.error:
            head += f". {printable(attempt.error)}"
        lines.append(head)
        lines += [f"    {line}" for line in printable(attempt.output).rstrip().splitlines()]
        if attempt.verified:
            lines += [paint(f"    verified: {line}", "dim") for line in printable(attempt.verified).splitlines()]
    return lines
