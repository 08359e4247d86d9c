"""A run's story as text, within a width: by step, with the time since the run began; what is long is cut."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Iterator
from datetime import datetime

from tenure.cli.output import human_duration, printable
from tenure.cli.story import QUIET, Entry, Story
from tenure.cli.timeline import ASCII, Paint, plain

WIDTH_MIN = 40
INDENT = 13
"""Of what is told, after the time."""
DETAIL_LINES = 4
"""Of each text, unless it is wanted whole."""
ENTRIES_SHOWN = 60
"""Of one step: the first and the last halves of it."""
RUN = "The run"


def tell(
    story: Story,
    *,
    width: int,
    paint: Paint = plain,
    full: bool = False,
    steps: Iterable[str] | None = None,
    ascii_only: bool = False,
) -> list[str]:
    """All of it, or what concerns `steps`. What went smoothly is left out unless `full`, or named in `steps`."""
    width = max(width, WIDTH_MIN)
    named = None if steps is None else set(steps)
    began = story.entries[0].at if story.entries else None
    lines: list[str] = []
    for step in dict.fromkeys(entry.step for entry in story.entries):
        entries = [entry for entry in story.entries if entry.step == step]
        wanted = step in named if named is not None else full or not _is_smooth(story, entries)
        if wanted:
            spent = story.spent.get(step) if step else story.all_spent
            lines += ["", paint(printable(step or RUN), "bold") + (paint(f"  {spent}", "dim") if spent else "")]
            lines += _section(entries, began, width, paint, full)
    return [line.translate(ASCII) for line in lines[1:]] if ascii_only else lines[1:]


def _is_smooth(story: Story, entries: list[Entry]) -> bool:
    """Whether the picture of the steps tells as much."""
    of_run = not entries[0].step and not story.spent
    return all(one.smooth or (of_run and (one.style == QUIET or one.kind == "run_succeeded")) for one in entries)


def _section(told: list[Entry], began: datetime | None, width: int, paint: Paint, full: bool) -> Iterator[str]:
    half = ENTRIES_SHOWN // 2
    left_out = 0 if full else max(0, len(told) - ENTRIES_SHOWN)
    for number, entry in enumerate(told):
        if left_out and number == half:
            yield paint(f"{'':{INDENT}}… {left_out} entries more: --full", "dim")
        if not left_out or not half <= number < half + left_out:
            yield from entry_lines(entry, began, width, paint, full)


def entry_lines(
    entry: Entry, began: datetime | None, width: int, paint: Paint = plain, full: bool = False
) -> Iterator[str]:
    """One entry: the time, what happened, and the texts behind it below."""
    since = f"+{human_duration((entry.at - began).total_seconds())}" if began else ""
    room = width - INDENT
    head = textwrap.wrap(" ".join(printable(entry.text).split()), room, break_on_hyphens=False) or [entry.kind]
    if not full and len(head) > DETAIL_LINES:
        head = [*head[: DETAIL_LINES - 1], _cut(head[DETAIL_LINES - 1] + " …", room)]
    yield f"{since:>{INDENT - 2}}  {paint(head[0], entry.style)}"
    for line in head[1:]:
        yield f"{'':{INDENT}}{paint(line, entry.style)}"
    for line in _details(entry, room - 2, full):
        yield f"{'':{INDENT}}{paint('│', 'dim')} {line}"


def news(entry: Entry, width: int) -> list[str]:
    """What a thought, a call or a question says to one who watches; nothing for what `timeline.lines_of` tells."""
    if entry.smooth or not entry.step or entry.style == QUIET:
        return []
    room = max(width, WIDTH_MIN) - 2
    head = _cut(f"{printable(entry.step)}: {' '.join(printable(entry.text).split())}", room)
    return [f"  {head}", *(f"    | {line}" for line in _details(entry, room - 4, full=False))]


def _details(entry: Entry, room: int, full: bool) -> list[str]:
    lines = [line.expandtabs(4) for line in printable(entry.details).splitlines()]
    if full:
        return lines
    shown = [_cut(line, room) for line in lines[:DETAIL_LINES]]
    left = len(lines) - len(shown)
    if left:
        shown.append(f"… {left} line{'' if left == 1 else 's'} more")
    return shown


def _cut(line: str, room: int) -> str:
    return line if len(line) <= room else line[: room - 1] + "…"
