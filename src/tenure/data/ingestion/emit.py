"""From batches of rows to the bytes of a COPY. What is not of its column's type, or cannot be held at all, is rejected."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

from tenure.data.ingestion import types
from tenure.data.ingestion.batches import Batch, Rejects, Row
from tenure.data.ingestion.plan import Column
from tenure.data.ingestion.streams import well_formed

MISFITS_SHARE_MAX = 0.01
"""When more of a column's values are not of its type, it is the type that is wrong."""
MISFITS_FREE = 5
_NO_JSONB = re.compile(r"\\u0000|[eE][+-]?[0-9]{4}")


@dataclass
class _Field:
    """A column while rows go through it. `fitting` are the wider types that take all that its own did not."""

    column: Column
    clean: Callable[[Sequence[str | None]], Sequence[str]]
    misfits: int = 0
    fitting: tuple[str, ...] = ()


class Emitter:
    """`write` takes pieces of COPY's text format. `trusted` values are of their type already. `needed` columns (by place) must
    have values. `numbered`: the line goes before the values of each row."""

    def __init__(
        self,
        columns: Sequence[Column],
        write: Callable[[bytes], object],
        rejects: Rejects,
        *,
        trusted: bool = False,
        empty_is_null: bool = True,
        needed: Iterable[int] = (),
        numbered: bool = False,
    ) -> None:
        self._fields = [
            _Field(
                column,
                types.cleaner(types.TEXT if trusted else column.type, empty_is_null=empty_is_null),
                fitting=types.wider(column.type),
            )
            for column in columns
        ]
        self._write, self._rejects = write, rejects
        self._trusted, self._needed, self._numbered = trusted, tuple(needed), numbered
        self.rows = 0
        self._seen = 0

    def take(self, batch: Batch) -> None:
        self._seen += len(batch.rows)
        rows, kept = batch.rows, list(range(len(batch.rows)))
        values = list(zip(*rows, strict=True))
        bad = self._misfitting(values)
        while True:
            if bad:
                for place in sorted(bad):
                    self._rejects.add(*_told(batch.where(kept[place]), bad[place]))
                kept = [place for index, place in enumerate(kept) if index not in bad]
                rows = [batch.rows[place] for place in kept]
                values = list(zip(*rows, strict=True))
            if not rows:
                return
            cleaned = [one.clean(column) for one, column in zip(self._fields, values, strict=True)]
            if self._numbered:
                cleaned.insert(0, [str(batch.where(place)[0]) for place in kept])
            text = "\n".join(map("\t".join, zip(*cleaned, strict=True))) + "\n"
            bad = self._lacking(cleaned) or ({} if well_formed(text) else _malformed(rows))
            if not bad:
                break
        self.rows += len(rows)
        self._write(text.encode())

    def _misfitting(self, values: Sequence[Sequence[str | None]]) -> dict[int, str]:
        bad: dict[int, str] = {}
        if self._trusted:
            return bad
        for one, column in zip(self._fields, values, strict=True):
            if one.column.type == types.JSONB:
                places = [at for at, value in enumerate(column) if value and _NO_JSONB.search(value)]
            elif places := types.misfits(one.column.type, column):
                one.misfits += len(places)
                strange = [column[place] for place in places]
                one.fitting = tuple(name for name in one.fitting if not types.misfits(name, strange))
            for place in places:
                reason = f"{(column[place] or '')[:80]!r} in the column {one.column.name} is not {one.column.type}."
                bad.setdefault(place, reason)
        return bad

    def _lacking(self, cleaned: Sequence[Sequence[str]]) -> dict[int, str]:
        bad: dict[int, str] = {}
        for at in self._needed:
            name = self._fields[at].column.name
            for place, value in enumerate(cleaned[at + self._numbered]):
                if value == "\\N":
                    bad.setdefault(place, f"The key column {name} has no value.")
        return bad

    def widened(self) -> list[Column] | None:
        """The columns as they ought to have been, when a type was wrong for too many values."""
        allowed = max(MISFITS_FREE, MISFITS_SHARE_MAX * self._seen)
        found = [
            replace(one.column, type=one.fitting[0] if one.fitting else types.TEXT, seen=True)
            if one.misfits > allowed
            else one.column
            for one in self._fields
        ]
        return found if found != [one.column for one in self._fields] else None


def _malformed(rows: Sequence[Row]) -> dict[int, str]:
    return {
        place: "It has a zero character, or bytes that are no character of the file's encoding."
        for place, row in enumerate(rows)
        if not all(well_formed(value) for value in row if value)
    }


def _told(where: tuple[int, str], reason: str) -> tuple[int, str, str]:
    return where[0], reason, where[1]
