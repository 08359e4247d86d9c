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
    from tenure.cli.story import Story
    from tenure.client.blocking import Run

LIVE_PER_SECOND = 4
LATEST_SHOWN, LATEST_LOOKED_AT = 6, 60
"""Of what brains thought and did, below the moving picture."""


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
            from tenure.cli.story import Story

            story = Story()
            with _moving_picture(found, story):
                for event in found.events():
                    story.take(event)
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
    from tenure.cli.story import Story
    from tenure.cli.storyteller import news
    from tenure.cli.timeline import ending, heading, lines_of

    story = Story()
    began: dict[str, datetime] = {}
    print(f"{found.id}: {output.printable(found.info.goal)}", flush=True)
    for event in found.events():
        if event.kind == "step_started" and event.step is not None:
            began[event.step] = event.at
        entry = story.take(event)
        for line in lines_of(event, began) or news(entry, _width()):
            print(line, flush=True)
    now = found.show()
    print("\n".join([heading(now, datetime.now(UTC)), *ending(now)]))


@contextlib.contextmanager
def _moving_picture(found: Run, story: Story) -> Generator[None]:
    from rich.console import Console
    from rich.live import Live
    from rich.text import Text

    def now() -> Text:
        from tenure.cli.storyteller import news

        latest = [news(entry, _width())[:1] for entry in story.entries[-LATEST_LOOKED_AT:]]
        lines = [*picture(found.info), "", *[line for lines in latest for line in lines][-LATEST_SHOWN:]]
        return Text.from_ansi("\n".join(lines), no_wrap=True, overflow="crop")

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

    return render(
        found,
        width=_width(),
        now=datetime.now(UTC),
        paint=output.paint,
        ascii_only=_is_ascii(),
        said=last,
    )


def told(found: Run, *, full: bool = False, steps: list[str] | None = None) -> list[str]:
    """The run's story, see `tenure.cli.storyteller`."""
    return told_of(found.journal(), full=full, steps=steps)


def told_of(events: list[wire.RunEvent], *, full: bool = False, steps: list[str] | None = None) -> list[str]:
    from tenure.cli.story import story_of
    from tenure.cli.storyteller import tell

    story = story_of(events)
    return tell(story, width=_width(), paint=output.paint, full=full, steps=steps, ascii_only=_is_ascii())


def _width() -> int:
    return shutil.get_terminal_size((100, 24)).columns


def _is_ascii() -> bool:
    return "utf" not in (sys.stdout.encoding or "ascii").lower()
