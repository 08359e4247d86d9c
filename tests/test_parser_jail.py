"""What a parser can do to the machine: nothing. And how much it takes: a little, however large its file is."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tenure.data.ingestion.jail import Jail
from tenure.data.ingestion.parser import Parsers
from tenure.data.ingestion.plan import Hints
from tenure.errors import TooLarge
from tenure.postgres.confine import CGROUP_ROOT

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="giving up root takes root")

MEMORY_BYTES = 96 * 1024**2
FILE_BYTES = 200 * 1024**2
TRIES = """
import json, os, socket, sys
from tenure.data.ingestion.jail import enter, jail_from
def tried(what):
    try:
        what()
        return "done"
    except OSError as error:
        return type(error).__name__
tries = {
    "read": lambda: open("/etc/passwd").close(),
    "read_above": lambda: open("/../../../../etc/passwd").close(),
    "connect": lambda: socket.create_connection(("127.0.0.1", int(sys.argv[2])), timeout=5).close(),
    "become_root": lambda: os.setuid(0),
    "signal": lambda: os.kill(int(sys.argv[3]), 0),
    "write_much": lambda: open("/large", "wb").truncate(1 << 40),
}
before = {name: tried(what) for name, what in tries.items() if name != "write_much"}
enter(jail_from(json.loads(sys.argv[1])))
after = {name: tried(what) for name, what in tries.items()}
print(json.dumps([before, after, os.getuid(), os.listdir("/")]))
"""


def test_a_parser_reaches_no_file_no_network_no_process_and_no_root(tmp_path: Path) -> None:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as server:
        os.chown(tmp_path, 208_000, 208_000)
        jail = Jail(208_000, str(tmp_path), file_bytes=1 << 20)
        arguments = [json.dumps(jail.as_json()), str(server.getsockname()[1]), str(os.getpid())]
        done = subprocess.run([sys.executable, "-c", TRIES, *arguments], capture_output=True, text=True, check=True)
    before, after, uid, seen = json.loads(done.stdout)
    assert set(before.values()) == {"done"}, "each is proven to be possible before"
    assert after == {
        "read": "FileNotFoundError",
        "read_above": "FileNotFoundError",
        "connect": "OSError",
        "become_root": "PermissionError",
        "signal": "PermissionError",
        "write_much": "OSError",
    }
    assert uid == 208_000
    assert seen in ([], ["large"])


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    made = tmp_path / "load"
    made.mkdir()
    return made


def _grow(path: Path, size: int, line: Callable[[int], bytes]) -> int:
    count = 0
    with path.open("wb") as file:
        file.write(b"id,name,amount,day,comment\n")
        while file.tell() < size:
            file.write(b"".join(line(at) for at in range(count, count + 10_000)))
            count += 10_000
    return count


needs_memory_limit = pytest.mark.skipif(
    not (CGROUP_ROOT / "memory").is_dir() and not (CGROUP_ROOT / "cgroup.controllers").exists(),
    reason="no control group limits memory here",
)


@needs_memory_limit
async def test_a_file_is_read_in_less_memory_than_it_has_bytes(directory: Path) -> None:
    """200 MB within 96 MiB, which the kernel enforces: over them the parser would be killed."""
    count = _grow(
        directory / "file",
        FILE_BYTES,
        lambda at: b'%d,"name, %d",%d.25,2024-01-%02d,some words about row %d\n' % (at, at % 7, at, at % 28 + 1, at),
    )
    parsers = Parsers(memory_bytes=MEMORY_BYTES)
    plan = await parsers.survey(directory, "data.csv", Hints())
    async with parsers.read(directory, plan, lambda _: None) as reading:
        seen = 0
        async for piece in reading.rows:
            seen += piece.count(b"\n")
        outcome = reading.outcome()
    assert (outcome.rows, outcome.rejects, seen) == (count, 0, count)


@needs_memory_limit
async def test_a_file_that_needs_more_memory_is_refused_and_the_server_goes_on(directory: Path) -> None:
    (directory / "file").write_bytes(b"a\n1\n")
    with pytest.raises(TooLarge, match="memory"):
        await Parsers(memory_bytes=2 * 1024**2).survey(directory, "data.csv", Hints())
    (directory / "file").chmod(0o600)
    (directory / "file").write_bytes(b"a\n1\n")
    plan = await Parsers().survey(directory, "data.csv", Hints())
    assert [column.type for column in plan.columns] == ["bigint"]


async def test_a_parser_ends_with_who_waits_for_it(directory: Path) -> None:
    _grow(directory / "file", 20 * 1024**2, lambda at: b"%d,n,1,2024-01-01,c\n" % at)
    parsers = Parsers()
    plan = await parsers.survey(directory, "data.csv", Hints())
    begun = asyncio.Event()

    async def read() -> None:
        async with parsers.read(directory, plan, lambda _: None) as reading:
            async for _ in reading.rows:
                begun.set()
                await asyncio.Event().wait()

    task = asyncio.create_task(read())
    await begun.wait()
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert not [entry for entry in Path("/proc").glob("[0-9]*") if _uid(entry) in range(208_000, 208_004)]


def _uid(entry: Path) -> int:
    try:
        return entry.stat().st_uid
    except OSError:
        return 0
