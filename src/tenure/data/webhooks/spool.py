"""Deliveries on the host's disk, in order, while an agent's database cannot take them. All methods block: for threads."""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

from tenure.data.webhooks.delivery import Delivery, from_bytes
from tenure.errors import DiskFull
from tenure.faultpoints import reach

log = logging.getLogger("tenure.webhooks")

FILES_MAX = 2000
"""Of one agent."""
AGENT_BYTES_MAX = 64 * 1024 * 1024
TOTAL_BYTES_MAX = 1024 * 1024 * 1024
SUFFIX = ".delivery"
_SPOILT = ".spoilt"


@dataclass
class _Line:
    """The files of one agent, the oldest first, with their sizes."""

    files: dict[str, int] = field(default_factory=dict[str, int])

    @property
    def total_bytes(self) -> int:
        return sum(self.files.values())


class Spool:
    """In `directory`, one directory per agent, one file per delivery, named so that they sort as they came."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._lock = threading.Lock()
        self._last_ns = 0
        self._lines: dict[str, _Line] = {}
        for unfinished in directory.glob("*/*.new"):
            unfinished.unlink(missing_ok=True)  # of a server that died; nobody was told that it came
        for file in sorted(directory.glob(f"*/*{SUFFIX}")):
            self._lines.setdefault(file.parent.name, _Line()).files[file.name] = file.stat().st_size

    def agents(self) -> list[str]:
        """Those for whom something waits."""
        with self._lock:
            return [agent for agent, line in self._lines.items() if line.files]

    def waiting(self, agent: str) -> int:
        line = self._lines.get(agent)
        return len(line.files) if line else 0

    def put(self, delivery: Delivery) -> None:
        """It is on disk, name and all, when this returns. Raises `DiskFull` when there is no room for it, or too much waits
        already, `OSError`."""
        data = delivery.to_bytes()
        with self._lock:
            line = self._lines.setdefault(delivery.agent, _Line())
            total_bytes = sum(one.total_bytes for one in self._lines.values())
            if (
                len(line.files) >= FILES_MAX
                or line.total_bytes + len(data) > AGENT_BYTES_MAX
                or total_bytes + len(data) > TOTAL_BYTES_MAX
            ):
                raise DiskFull(f"{len(line.files)} deliveries for {delivery.agent} wait already.")
            self._last_ns = max(self._last_ns + 1, time.time_ns())
            name = f"{self._last_ns:020d}-{delivery.id}{SUFFIX}"
            place = self._directory / delivery.agent
            if not place.exists():
                place.mkdir(parents=True, mode=0o700)
                _sync(self._directory)
                _sync(self._directory.parent)
            fresh = place / f"{name}.new"
            try:
                with open(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), "wb") as file:
                    file.write(data)
                    file.flush()
                    os.fsync(file.fileno())
                reach("webhook.spool.written")
                fresh.rename(place / name)
                _sync(place)
            except BaseException:
                with contextlib.suppress(OSError):
                    fresh.unlink()
                with contextlib.suppress(OSError):
                    (place / name).unlink()
                raise
            line.files[name] = len(data)

    def first(self, agent: str) -> tuple[str, Delivery] | None:
        """The one that waits longest, and its name here. One that cannot be read is put aside."""
        while True:
            with self._lock:
                line = self._lines.get(agent)
                name = next(iter(line.files), None) if line else None
            if name is None:
                return None
            path = self._directory / agent / name
            try:
                return name, from_bytes(path.read_bytes())
            except (ValueError, KeyError, TypeError, FileNotFoundError):
                log.exception("%s cannot be read and is put aside", path)
                with contextlib.suppress(FileNotFoundError):
                    path.rename(path.with_suffix(_SPOILT))
                self._forget(agent, name)

    def done(self, agent: str, name: str) -> None:
        """It is in the database."""
        (self._directory / agent / name).unlink(missing_ok=True)
        self._forget(agent, name)

    def _forget(self, agent: str, name: str) -> None:
        with self._lock:
            if agent in self._lines:
                self._lines[agent].files.pop(name, None)

    def drop(self, agent: str) -> None:
        """All of an agent that is deleted."""
        with self._lock:
            self._lines.pop(agent, None)
            shutil.rmtree(self._directory / agent, ignore_errors=True)


def _sync(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
