"""`ProcessSandbox`: a sandbox that is none. It runs `officed` as a process of the host, in milliseconds, so that tests of
doors and offices need no gVisor. It isolates nothing: never run anything in it that you would not run yourself.

Commands see the host's files, users and network; `spec.root` holds only the record of jobs; limits are not held. Only the
process space is its own (`unshare --pid`), so that the kernel ends every process of a sandbox together with its first.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path

from tenure.errors import Conflict, ImageUnusable, InvalidArgument, NotFound, SandboxError
from tenure.offices.sandboxes.base import SandboxDriver, SandboxSpec, SandboxState, SandboxUsage

ID_PATTERN = re.compile(r"[a-z0-9-]{1,80}")
START_TIMEOUT_S = 10.0
END_TIMEOUT_S = 10.0
POLL_S = 0.005
PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
CLOCK_TICKS_PER_S = os.sysconf("SC_CLK_TCK")
STATE_FIELD, USER_TIME_FIELD, START_TIME_FIELD, RESIDENT_FIELD = 0, 11, 19, 21
"""Positions in `/proc/PID/stat`, counted after the name."""


class ProcessSandbox(SandboxDriver):
    """State lies in `directory`; two drivers on one directory are two views of the same sandboxes."""

    name = "process"
    isolates = False
    cannot_checkpoint = "the process fake runs on the host's own kernel, which keeps no memory images"

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._starting: set[str] = set()

    async def start(self, spec: SandboxSpec, *, image: Path | None = None, binding: str = "") -> None:
        if image is not None:
            raise ImageUnusable(f"The memory image {image.name} cannot be used: {self.cannot_checkpoint}.")
        if spec.id in self._starting or await self.state(spec.id) in (SandboxState.RUNNING, SandboxState.PAUSED):
            raise Conflict(f"The sandbox {spec.id} is running already.")
        self._starting.add(spec.id)
        try:
            await self.stop(spec.id, grace_s=0)
            await self._start(spec)
        finally:
            self._starting.discard(spec.id)

    async def _start(self, spec: SandboxSpec) -> None:
        record = self._record(spec.id)
        record.mkdir(parents=True)
        try:
            launcher, first = await _spawn(spec)
        except (OSError, SandboxError) as error:
            shutil.rmtree(record)
            raise SandboxError(f"The sandbox {spec.id} did not start: {error}") from error
        (record / "pid").write_text(f"{first} {_stat(first)[START_TIME_FIELD]} {launcher}")

    async def checkpoint(self, sandbox_id: str, image: Path, *, binding: str) -> None:
        if (state := await self.state(sandbox_id)) is not SandboxState.RUNNING:
            raise Conflict(f"The sandbox {sandbox_id} is {state}, not running.")
        raise SandboxError(f"There are no memory images here: {self.cannot_checkpoint}.", details={"state": state})

    async def stop(self, sandbox_id: str, *, grace_s: float = 2.0) -> None:
        if grace_s > 0 and (first := self._first(sandbox_id)) is not None:
            _signal(_members(first), signal.SIGCONT)
            _signal({first}, signal.SIGTERM)
            await _wait_until(lambda: self._first(sandbox_id) is None, grace_s)
        if (first := self._first(sandbox_id)) is not None:
            _signal({first}, signal.SIGKILL)
            if not await _wait_until(lambda: self._first(sandbox_id) is None, END_TIMEOUT_S):
                raise SandboxError(f"The sandbox {sandbox_id} could not be ended: process {first} stays.")
        with contextlib.suppress(OSError, ValueError):
            launcher = int((self._record(sandbox_id) / "pid").read_text().split()[2])
            await _wait_until(lambda: _has_ended(launcher), END_TIMEOUT_S)
        shutil.rmtree(self._record(sandbox_id), ignore_errors=True)

    async def state(self, sandbox_id: str) -> SandboxState:
        if not self._record(sandbox_id).exists():
            return SandboxState.ABSENT
        if (first := self._first(sandbox_id)) is None:
            return SandboxState.DEAD
        return SandboxState.PAUSED if _stat(first)[STATE_FIELD] in "Tt" else SandboxState.RUNNING

    async def pause(self, sandbox_id: str) -> None:
        await self._switch(sandbox_id, SandboxState.RUNNING, SandboxState.PAUSED, signal.SIGSTOP)

    async def resume(self, sandbox_id: str) -> None:
        await self._switch(sandbox_id, SandboxState.PAUSED, SandboxState.RUNNING, signal.SIGCONT)

    async def usage(self, sandbox_id: str) -> SandboxUsage:
        if (first := self._first(sandbox_id)) is None:
            raise NotFound(f"The sandbox {sandbox_id} is not running.")
        stats = [_stat(pid) for pid in _members(first)]
        ticks = sum(int(field) for stat in stats for field in stat[USER_TIME_FIELD : USER_TIME_FIELD + 4])
        return SandboxUsage(
            memory_bytes=sum(int(stat[RESIDENT_FIELD]) for stat in stats) * PAGE_BYTES,
            cpu_s=ticks / CLOCK_TICKS_PER_S,
            processes=len(stats),
        )

    async def ids(self) -> list[str]:
        return sorted(entry.name for entry in self._directory.iterdir()) if self._directory.exists() else []

    async def _switch(self, sandbox_id: str, before: SandboxState, after: SandboxState, number: signal.Signals) -> None:
        state, first = await self.state(sandbox_id), self._first(sandbox_id)
        if state is not before or first is None:
            raise Conflict(f"The sandbox {sandbox_id} is {state}, not {before}.")
        done = _all_stop(first) if after is SandboxState.PAUSED else lambda: _stat(first)[STATE_FIELD] not in "Tt"
        _signal(_members(first), number)
        if not await _wait_until(done, END_TIMEOUT_S):
            _signal(_members(first), signal.SIGCONT)
            raise SandboxError(f"The sandbox {sandbox_id} did not become {after}.")

    def _record(self, sandbox_id: str) -> Path:
        if not ID_PATTERN.fullmatch(sandbox_id):
            raise InvalidArgument(f"{sandbox_id!r} cannot be a sandbox's id: use a-z, 0-9 and '-'.")
        return self._directory / sandbox_id

    def _first(self, sandbox_id: str) -> int | None:
        """Host process id of the sandbox's PID 1 while it lives; with its start time, since process ids are used again."""
        with contextlib.suppress(OSError, ValueError):
            pid, started, _ = (self._record(sandbox_id) / "pid").read_text().split()
            stat = _stat(int(pid))
            if stat[STATE_FIELD] not in "ZX" and stat[START_TIME_FIELD] == started:
                return int(pid)
        return None


async def _spawn(spec: SandboxSpec) -> tuple[int, int]:
    """Starts `officed` in a process space of its own; returns the host process ids of its launcher and of itself."""
    forwards = [word for address, name in spec.forwards for word in ("--forward", f"{address}={spec.doorway / name}")]
    words = [
        "unshare", "--pid", "--fork", "--kill-child", "--mount-proc", *(() if os.geteuid() == 0 else ("--map-root-user",)),
        str(spec.officed_dir / "officed"), "--door", str(spec.doorway / "door.sock"),
        "--jobs", str(spec.root / "var/lib/tenure/jobs"), "--hosts", str(spec.root / "etc/hosts"),
        "--own-process-space", "yes", *forwards,
    ]  # fmt: skip
    # Not asyncio's subprocess: that one would kill the sandbox when its event loop ends, and sandboxes outlive the server.
    nothing = [(os.POSIX_SPAWN_OPEN, fd, os.devnull, os.O_RDWR, 0) for fd in (0, 1, 2)]
    launcher = await asyncio.to_thread(os.posix_spawnp, words[0], words, os.environ, file_actions=nothing, setsid=True)
    children = Path(f"/proc/{launcher}/task/{launcher}/children")
    found: list[int] = []

    def has_forked() -> bool:
        with contextlib.suppress(OSError):
            found[:] = [int(pid) for pid in children.read_text().split()]
        return bool(found) or _has_ended(launcher)

    if not await _wait_until(has_forked, START_TIMEOUT_S) or not found:
        raise SandboxError("unshare did not start officed.")
    return launcher, found[0]


def _has_ended(launcher: int) -> bool:
    """Whether our child `launcher` has ended; collects it then. True for somebody else's: init collects that."""
    try:
        return os.waitpid(launcher, os.WNOHANG)[0] == launcher
    except ChildProcessError:
        return True


def _members(first: int) -> set[int]:
    """All processes in the process space of `first`."""
    found: set[int] = set()
    with contextlib.suppress(OSError):
        space = os.readlink(f"/proc/{first}/ns/pid")
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                with contextlib.suppress(OSError):
                    if os.readlink(entry / "ns/pid") == space:
                        found.add(int(entry.name))
    return found


def _all_stop(first: int) -> Callable[[], bool]:
    """Asked again and again, stops what was forked meanwhile; true when all stand still. A list of processes is no instant:
    one forked behind its back is in the next list, which therefore has to be the same."""
    before: set[int] = set()

    def stand_still() -> bool:
        nonlocal before
        last, before = before, _members(first)
        running = {pid for pid in before if not _stands_still(pid)}
        _signal(running, signal.SIGSTOP)
        return not running and before == last

    return stand_still


def _stands_still(pid: int) -> bool:
    """Whether every thread of `pid` is stopped, over, or will stop before it does anything else: one that waits for the exec of
    what it started by `vfork` shows as D, and cannot stop while that one stands still."""
    try:
        for task in Path(f"/proc/{pid}/task").iterdir():
            state = (task / "stat").read_text().rpartition(") ")[2][0]
            if state not in "TtZXD" or (state == "D" and not _is_told_to_stop(task)):
                return False
    except OSError:  # it ended, or a thread did: the next round knows
        return not Path(f"/proc/{pid}").exists()
    return True


def _is_told_to_stop(task: Path) -> bool:
    fields = dict(line.split(":", 1) for line in (task / "status").read_text().splitlines() if ":" in line)
    return any(int(fields[name], 16) >> (signal.SIGSTOP - 1) & 1 for name in ("SigPnd", "ShdPnd"))


def _stat(pid: int) -> list[str]:
    """The fields of `/proc/PID/stat` after the name, beginning with the state; a zombie's for a process that left."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()
    except OSError:
        return ["Z"] + ["0"] * 50


def _signal(pids: set[int], number: signal.Signals) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


async def _wait_until(done: Callable[[], bool], timeout_s: float) -> bool:
    deadline = time.monotonic() + timeout_s
    while not done():
        if time.monotonic() >= deadline:
            return False
        await asyncio.sleep(POLL_S)
    return True
