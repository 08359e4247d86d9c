"""What an archive of a database holds, read from its names, and what a restore to one moment needs of it. Pure.

    NAME/LINE/base-MOMENT.tar.gz        a copy of the whole cluster, as of MOMENT or a little before
    NAME/LINE/wal/SEGMENT-MOMENT.gz     a segment of its log, whose last record was written at MOMENT

A line is one past: it is named for the moment at which it began, and is over when the next one begins.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from tenure.errors import InvalidArgument, NotFound

FORMAT = "%Y%m%dT%H%M%S.%fZ"
MARGIN = timedelta(seconds=10)
"""A commit's moment is taken a little before it is written, and files have coarser clocks."""
_BASE = re.compile(r"base-([^/-]+)\.tar\.gz\Z")
_SEGMENT = re.compile(r"wal/([0-9A-F]{24}|[0-9A-F]{8}\.history)-([^/-]+)\.gz\Z")


def written(moment: datetime) -> str:
    return moment.astimezone(UTC).strftime(FORMAT)


def read(text: str) -> datetime:
    """Raises `ValueError`."""
    return datetime.strptime(text, FORMAT).replace(tzinfo=UTC)


@dataclass(frozen=True)
class Segment:
    """A file of the log, as PostgreSQL names it."""

    name: str
    moment: datetime
    key: str


@dataclass(frozen=True)
class Base:
    moment: datetime
    key: str


@dataclass
class Line:
    began: datetime
    bases: list[Base] = field(default_factory=list[Base])
    segments: list[Segment] = field(default_factory=list[Segment])


@dataclass(frozen=True)
class Needed:
    """For a restore: unpack the base, replay the segments."""

    base: Base
    segments: Sequence[Segment]


def base_key(name: str, line: str, moment: datetime) -> str:
    return f"{name}/{line}/base-{written(moment)}.tar.gz"


def segment_key(name: str, line: str, segment: str, moment: datetime) -> str:
    return f"{name}/{line}/wal/{segment}-{written(moment)}.gz"


def lines_of(name: str, keys: Iterable[str], current: str | None = None) -> list[Line]:
    """The oldest first, with the `current` one, of which there may be nothing yet. What has no name of ours is left out."""
    lines: dict[str, Line] = {} if current is None else {current: Line(read(current))}
    for key in keys:
        parts = key.split("/", 2)
        if len(parts) != 3 or parts[0] != name:
            continue
        try:
            line = lines.setdefault(parts[1], Line(read(parts[1])))
            if base := _BASE.match(parts[2]):
                line.bases.append(Base(read(base[1]), key))
            elif segment := _SEGMENT.match(parts[2]):
                line.segments.append(Segment(segment[1], read(segment[2]), key))
        except ValueError:
            continue
    return sorted(lines.values(), key=lambda line: line.began)


def needed(name: str, lines: Sequence[Line], to: datetime, *, is_all: bool) -> Needed:
    """For the moment `to`. `is_all`: nothing was written up to that moment that is not there. Raises `NotFound` when there are no
    backups, `InvalidArgument` for a moment that they do not cover."""
    bases = [base.moment for line in lines for base in line.bases]
    if not bases:
        raise NotFound(f"There are no backups of {name} there.", hint="`tenure db backup` begins to make them.")
    then = [line for line in lines if line.began <= to]
    before = [base for base in then[-1].bases if base.moment <= to] if then else []
    if not before:
        raise InvalidArgument(
            f"There is no backup from which {name} could be brought to {to:%Y-%m-%d %H:%M:%S} UTC.",
            hint="There are some from these moments on: "
            + ", ".join(f"{base:%Y-%m-%dT%H:%M:%SZ}" for base in sorted(bases)[-5:]),
        )
    base = max(before, key=lambda one: one.moment)
    log = sorted(then[-1].segments, key=lambda one: one.name)
    histories = [one for one in log if one.name.endswith(".history")]
    files = [one for one in log if not one.name.endswith(".history") and one.moment >= base.moment - MARGIN]
    until = max((one.moment for one in files), default=base.moment)
    if to > until and not is_all:
        raise InvalidArgument(
            f"The log of {name} was archived up to {until:%Y-%m-%d %H:%M:%S} UTC only.",
            hint=f"That is the last moment that can be restored: --to {until:%Y-%m-%dT%H:%M:%SZ}",
        )
    wanted: list[Segment] = []
    for one in files:
        wanted.append(one)
        if one.moment > to + MARGIN:
            break
    return Needed(base, [*histories, *wanted])
