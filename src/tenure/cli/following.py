"""Watching a run: a picture that moves on a terminal, lines as they happen elsewhere."""

from __future__ import annotations

import contextlib
import shutil
import sys
from collections.abc import Generator
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from tenure.cli import exit_codes, output

if TYPE_CHECKING:
    from tenure import wire
    from tenure.client.blocking import Run

LIVE_PER_SECOND = 4


def ending_code(state: wire.RunState) -> int:
    """The exit code that a followed run ends with."""
    return {
        "succeeded": 0,
        "failed": exit_codes.RUN_FAILED,
        "parked": exit_codes.RUN_PARKED,
        "cancelled": exit_codes.RUN_CANCELLED,
    }.get(state, 1)


def follow(found: Run) -> None:
    """A picture that moves on a terminal; lines as they happen elsewhere. Ctrl-C leaves the run going on, and says so."""
    try:
        if output.is_terminal(sys.stdout):
            with _moving_picture(found):
                for _ in found.events():
                    found.show()
            print("\n".join(picture(found.show(), said(found))))
        else:
            _follow_in_lines(found)
    except KeyboardInterrupt:
        output.note(
            f"\nThe run goes on. Follow it: tenure runs follow {found.id}; end it: tenure runs cancel {found.id}"
        )
        raise


def _follow_in_lines(found: Run) -> None:
    from tenure.cli.timeline import ending, heading, lines_of

    began: dict[str, datetime] = {}
    print(f"{found.id}: {output.printable(found.info.goal)}", flush=True)
    for event in found.events():
        if event.kind == "step_started" and event.step is not None:
            began[event.step] = event.at
        for line in lines_of(event, began):
            print(line, flush=True)
    now = found.show()
    print("\n".join([heading(now, datetime.now(UTC)), *ending(now)]))


@contextlib.contextmanager
def _moving_picture(found: Run) -> Generator[None]:
    from rich.console import Console
    from rich.live import Live
    from rich.text import Text

    def now() -> Text:
        return Text.from_ansi("\n".join(picture(found.info)), no_wrap=True, overflow="crop")

    console = Console(highlight=False)
    with Live(get_renderable=now, console=console, refresh_per_second=LIVE_PER_SECOND, transient=True):
        yield


def said(found: Run) -> dict[str, list[str]]:
    """The last lines that each failed step printed: mostly they say why."""
    from tenure.cli.attempts import attempts_of
    from tenure.cli.timeline import LINES_SHOWN, last_lines

    failed = {step.id for step in found.steps if step.state in ("failed", "unverified")}
    if not failed:
        return {}
    attempts = attempts_of(found.journal())
    return {step: last_lines(attempts[step][-1].output, LINES_SHOWN) for step in failed & attempts.keys()}


def picture(found: wire.Run, last: dict[str, list[str]] | None = None) -> list[str]:
    from tenure.cli.timeline import render

    width = shutil.get_terminal_size((100, 24)).columns
    encoding = (sys.stdout.encoding or "ascii").lower()
    return render(
        found,
        width=width,
        now=datetime.now(UTC),
        paint=output.paint,
        ascii_only="utf" not in encoding,
        said=last,
    )
