"""An office's log: one file of plain lines about its life, bounded, that `tenure logs` shows."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path

from tenure.settings import Settings

LOG_BYTES_MAX = 4 * 1024 * 1024
"""At this size the file becomes `.1` and a new one begins."""
FOLLOW_POLL_S = 0.3
CHUNK_BYTES = 64 * 1024
LINES_MAX = 10_000


class OfficeLog:
    def __init__(self, path: Path) -> None:
        self.path = path

    def write(self, source: str, text: str) -> None:
        """Appends one line per line of `text`: time, source ("office", "sandbox", "egress"), text."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if self.path.exists() and self.path.stat().st_size > LOG_BYTES_MAX:
            self.path.replace(self.path.with_suffix(".log.1"))
        now = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        with self.path.open("a", encoding="utf-8", errors="replace") as file:
            for line in text.splitlines() or [""]:
                file.write(f"{now} {source}: {line}\n")

    def last(self, lines: int) -> bytes:
        """The last `lines` lines, of at most `LOG_BYTES_MAX`."""
        try:
            with self.path.open("rb") as file:
                size = file.seek(0, 2)
                file.seek(max(0, size - LOG_BYTES_MAX))
                kept = file.read().splitlines(keepends=True)
        except FileNotFoundError:
            return b""
        return b"".join(kept[-min(lines, LINES_MAX) :]) if lines > 0 else b""

    async def read(self, lines: int, follow: bool) -> AsyncIterator[bytes]:
        """The last lines, then with `follow` what is appended, across rotation, until the reader stops."""
        if last := self.last(lines):
            yield last
        if not follow:
            return
        at = self.path.stat().st_size if self.path.exists() else 0
        while True:
            await asyncio.sleep(FOLLOW_POLL_S)
            if not self.path.exists():
                continue
            size = self.path.stat().st_size
            at = 0 if size < at else at
            while at < size:
                with self.path.open("rb") as file:
                    file.seek(at)
                    chunk = file.read(CHUNK_BYTES)
                at += len(chunk)
                yield chunk

    def remove(self) -> None:
        self.path.unlink(missing_ok=True)
        self.path.with_suffix(".log.1").unlink(missing_ok=True)


def office_log(settings: Settings, agent: str) -> OfficeLog:
    """The log of `agent`'s office."""
    return OfficeLog(settings.logs_dir / "offices" / f"{agent}.log")
