"""One PostgreSQL cluster: made, started, adopted, stopped.

Its server is a process of its own session with nothing inherited but a log file, so it outlives a `kill -9` of the
Tenure server; the next one finds it by its pid file. There is no state of ours to lose: `Cluster` is made anew from
paths at any time.
"""

from __future__ import annotations

import asyncio
import os
import pwd
import subprocess
import time
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from signal import SIGINT, SIGKILL, SIGQUIT

from tenure.errors import DiskFull, InternalError, SetupError
from tenure.postgres import confine, files, probe, process
from tenure.postgres.tree import PostgresTree

INITDB_TIMEOUT_S = 60.0
PANIC = " PANIC:  "
"""Of a line of the log after which the server ends itself."""
START_TIMEOUT_S = 120.0
"""Crash recovery replays at most `max_wal_size` of WAL; this is far more than that takes."""
STOP_FAST_TIMEOUT_S = 20.0
STOP_IMMEDIATE_TIMEOUT_S = 5.0
ORPHANS_TIMEOUT_S = 10.0
SOCKET_PATH_BYTES_MAX = 107
SOCKET_NAME = ".s.PGSQL.5432"
SUPERUSER = "tenure"

TINY = {
    "shared_buffers": "16MB",
    "max_connections": "50",
    "max_wal_size": "128MB",
    "min_wal_size": "16MB",
    "wal_level": "minimal",
    "max_wal_senders": "0",
    "max_logical_replication_workers": "0",
    "log_checkpoints": "off",
    "wal_init_zero": "off",  # on a copy-on-write file system zeroing and recycling segments only costs
    "wal_recycle": "off",
    "io_method": "sync",  # no worker processes
    "max_worker_processes": "4",
    "max_parallel_workers": "2",
    "max_parallel_workers_per_gather": "1",
    "huge_pages": "off",
    "jit": "off",
}
"""Parameters for a server of about 10 MB; `fsync` stays on."""


class ClusterState(StrEnum):
    STOPPED = "stopped"
    RUNNING = "running"


@dataclass(frozen=True)
class Cluster:
    """A cluster at `data_dir`, reached by the Unix socket in `socket_dir` only. All methods may be called by several
    processes, but not at the same time for the same cluster; callers in one process serialise (`OfficeDatabase` does).
    """

    tree: PostgresTree
    data_dir: Path
    socket_dir: Path
    log_file: Path
    uid: int
    gid: int
    parameters: dict[str, str] = field(default_factory=lambda: dict(TINY))
    confinement: confine.Confinement | None = None

    @property
    def socket(self) -> Path:
        return self.socket_dir / SOCKET_NAME

    async def initdb(self) -> None:
        """Makes a new cluster with the superuser `tenure` in the empty or missing `data_dir`. Local connections are
        trusted: the socket directory's mode is the guard. Raises `InternalError`, `DiskFull`."""
        argv = [str(self.tree.program("initdb")), "-D", str(self.data_dir), "-U", SUPERUSER, "-E", "UTF8"]
        argv += ["--locale-provider=builtin", "--builtin-locale=C.UTF-8", "--locale=C", "--wal-segsize=4"]
        argv += ["--auth=trust"]
        await asyncio.to_thread(self._initdb, argv)

    async def is_running(self) -> bool:
        postmaster = await asyncio.to_thread(process.find_postmaster, self.data_dir)
        if postmaster is None:
            return False
        postmaster.close()
        return True

    async def start(self, timeout_s: float = START_TIMEOUT_S) -> bool:
        """Returns when connections are accepted: False when the server ran already (adopted), True when it was started.
        Raises `DiskFull` when the volume has no room for it, `InternalError` with the end of its log otherwise."""
        started = not await self.is_running()
        if started:
            await asyncio.to_thread(self._launch)
        await self._wait_until_ready(time.monotonic() + timeout_s)
        return started

    async def stop(self) -> None:
        """Disconnects clients, writes a checkpoint and ends (SIGINT); after 20 s without one (SIGQUIT): the next start
        recovers. Not an error when it does not run. Never SIGTERM, which waits for clients to leave."""
        await asyncio.to_thread(self._stop)

    # --- the blocking halves ------------------------------------------------------------------------------------
    def _initdb(self, argv: list[str]) -> None:
        # initdb, unlike the server, insists on a user that has a name; the files get their owner afterwards.
        nobody = pwd.getpwnam("nobody")
        files.own_directory(self.data_dir, nobody.pw_uid, nobody.pw_gid)
        done = subprocess.run(
            confine.command(argv, uid=nobody.pw_uid, gid=nobody.pw_gid, confinement=None),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=INITDB_TIMEOUT_S,
            env=_ENVIRONMENT,
            cwd="/",
            check=False,
        )
        if done.returncode != 0:
            raise _failure("PostgreSQL's initdb failed", done.stderr.decode("utf-8", "replace"))
        files.own_tree(self.data_dir, self.uid, self.gid)

    def _launch(self) -> None:
        if len(os.fsencode(self.socket)) > SOCKET_PATH_BYTES_MAX:
            raise SetupError(f"The socket path {self.socket} is too long.", hint="Choose a shorter TENURE_HOME.")
        if process.read_pid(self.data_dir) is not None:  # it did not end by itself
            if not process.wait_for_orphans(self.data_dir, ORPHANS_TIMEOUT_S):
                raise InternalError(f"Processes of a killed PostgreSQL still use {self.data_dir}.")
            process.remove_stale_pid_file(self.data_dir)
        if self.confinement is not None:
            confine.end_strays(self.confinement)
        self.socket_dir.parent.mkdir(parents=True, exist_ok=True)
        files.own_directory(self.socket_dir, self.uid, self.gid)
        for leftover in (self.socket, self.socket.with_name(SOCKET_NAME + ".lock")):
            leftover.unlink(missing_ok=True)
        self.log_file.parent.mkdir(parents=True, exist_ok=True)
        files.trim_log(self.log_file)
        options = {
            "listen_addresses": "",
            "unix_socket_directories": str(self.socket_dir),
            "unix_socket_permissions": "0700",
            "port": "5432",
            "logging_collector": "off",
            "log_destination": "stderr",
        } | self.parameters
        argv = [str(self.tree.program("postgres")), "-D", str(self.data_dir)]
        for name, value in options.items():
            argv += ["-c", f"{name}={value}"]
        offset = files.log_size(self.log_file)
        # Appending, so that trimming the file under a running server frees it.
        with self.log_file.open("ab") as output:
            server = subprocess.Popen(
                confine.command(argv, uid=self.uid, gid=self.gid, confinement=self.confinement),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=_ENVIRONMENT,
                cwd="/",
                start_new_session=True,
            )
        _children[self.data_dir] = _Child(server, offset)

    async def _wait_until_ready(self, deadline: float) -> None:
        pause_s = 0.005
        while not (process.says_ready(self.data_dir) and await probe.accepts_connections(self.socket, SUPERUSER)):
            child = _children.get(self.data_dir)
            exited = child is not None and child.process.poll() is not None
            if exited or (child is None and not await self.is_running()):
                _children.pop(self.data_dir, None)
                raise _failure(
                    "PostgreSQL did not start",
                    files.log_since(self.log_file, child.log_offset if child is not None else 0),
                )
            if time.monotonic() > deadline:
                raise InternalError(
                    "PostgreSQL accepts no connection in the time it was given.", details={"log": self.log_tail()}
                )
            await asyncio.sleep(pause_s)
            pause_s = min(pause_s * 1.5, 0.2)

    def _stop(self) -> None:
        postmaster = process.find_postmaster(self.data_dir)
        if postmaster is not None:
            with postmaster:
                for number, wait_s in (
                    (SIGINT, STOP_FAST_TIMEOUT_S),
                    (SIGQUIT, STOP_IMMEDIATE_TIMEOUT_S),
                    (SIGKILL, STOP_IMMEDIATE_TIMEOUT_S),
                ):
                    postmaster.signal(number)
                    if postmaster.wait(wait_s):
                        break
                else:
                    raise InternalError(f"PostgreSQL (pid {postmaster.pid}) does not end.")
        child = _children.pop(self.data_dir, None)
        if child is not None:
            child.process.poll()
        if self.confinement is not None:
            confine.remove_cgroups(self.confinement)

    def panic(self) -> str:
        """Why the server that this process started last ended itself, in its own words; empty when it did not."""
        child = _children.get(self.data_dir)
        if child is None:
            return ""
        said = files.log_since(self.log_file, child.log_offset, files.LOG_BYTES_MAX)  # the statement follows, whole
        return "\n".join(line for line in said.splitlines() if PANIC in line)

    def log_tail(self) -> str:
        """The last 4 KiB of the server's log."""
        return files.log_since(self.log_file, 0)


_ENVIRONMENT = {"PATH": os.defpath, "LC_ALL": "C", "TZ": "UTC"}


@dataclass(frozen=True)
class _Child:
    process: subprocess.Popen[bytes]
    log_offset: int
    """How long the log was when it started: what comes after is its own."""


_children: dict[Path, _Child] = {}
"""Servers started by this process, by data directory, only so that an early exit is seen and reaped."""


def _failure(what: str, output: str) -> DiskFull | InternalError:
    if files.says_disk_full(output):
        return DiskFull(
            f"{what}: its volume is full.",
            hint="Delete files in the office (`tenure shell AGENT`) or give it a larger disk; the data is intact.",
            details={"log": output},
        )
    lines = [line for line in output.splitlines() if line.strip()]
    return InternalError(f"{what}: {lines[-1] if lines else 'it said nothing'}", details={"log": output})
