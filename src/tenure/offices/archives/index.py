"""What an export had of an office, name by name: kept on the machine, so that the next export holds only what is new.

One file per export: lines of JSON in the order of the walk, compressed; the first says where the export stood.
"""

from __future__ import annotations

import io
import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import zstandard

from tenure.offices.archives.blocks import Blocks
from tenure.offices.archives.members import Kind

LINE_BYTES_MAX = 512 * 1024 * 1024


@dataclass(frozen=True)
class Stand:
    """Which volume it was, and the generation up to which the export has it. `volume` is empty where the driver cannot tell
    what changed since."""

    export: str
    volume: str = ""
    generation: int = 0


@dataclass(frozen=True)
class Row:
    path: str
    kind: Kind
    mode: int
    uid: int
    gid: int
    mtime_ns: int
    size: int
    inode: int
    target: str
    """Of a link; of a file with several names the first of them."""
    device: tuple[int, int]
    xattrs: str
    """A digest."""
    blocks: Blocks | None = None
    """Of a file, under its first name."""

    @property
    def facts(self) -> tuple[Any, ...]:
        """All but what is in it, and how the machine numbers it."""
        size = 0 if self.kind is Kind.DIRECTORY else self.size
        return self.kind, self.mode, self.uid, self.gid, self.mtime_ns, size, self.target, self.device, self.xattrs

    def to_line(self) -> bytes:
        values = [*(value for name, value in vars(self).items() if name != "blocks"), None]
        if self.blocks is not None:
            values[-1] = self.blocks.to_json()
        return json.dumps(values, separators=(",", ":")).encode() + b"\n"

    @classmethod
    def from_line(cls, line: bytes) -> Row:
        values: list[Any] = json.loads(line)
        values[1], values[9] = Kind(values[1]), tuple(values[9])
        values[11] = None if values[11] is None else Blocks.from_json(values[11])
        return cls(*values)


class IndexWriter:
    """Writes beside `path`; `commit` puts it in place, leaving without it removes it."""

    def __init__(self, path: Path, stand: Stand) -> None:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._path, self._fresh = path, path.with_name(path.name + ".new")
        self._file = self._fresh.open("wb")
        self._writer: Any = zstandard.ZstdCompressor(level=1).stream_writer(self._file, closefd=False)
        self._writer.write(json.dumps(asdict(stand)).encode() + b"\n")

    def add(self, row: Row) -> None:
        self._writer.write(row.to_line())

    def commit(self) -> None:
        self._writer.close()
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        self._fresh.replace(self._path)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self._file.close()
        self._fresh.unlink(missing_ok=True)


def read_stand(path: Path) -> Stand:
    """Raises `FileNotFoundError`."""
    with path.open("rb") as file, zstandard.ZstdDecompressor().stream_reader(file) as reader:
        return Stand(**json.loads(io.BufferedReader(reader).readline()))  # pyright: ignore[reportArgumentType]


def read_rows(path: Path) -> Iterator[Row]:
    with path.open("rb") as file, zstandard.ZstdDecompressor().stream_reader(file) as reader:
        lines = io.BufferedReader(reader, 1024 * 1024)  # pyright: ignore[reportArgumentType]
        lines.readline()
        while line := lines.readline(LINE_BYTES_MAX):
            yield Row.from_line(line)
