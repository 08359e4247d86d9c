"""Sandboxes as gVisor containers: `runsc` boots them, the host's control groups tell about them and end them.

A sandbox `id` leaves `<runsc_root>/<id>/` (bundle, log, and runsc's own state) and the control group
`/tenure/<hash of runsc_root>/<id>`; both are found again after a restart of the server, and nothing else is remembered.
`runsc` itself is asked only to start, to deliver SIGTERM, and to write memory images. The rest goes to the control group,
because `runsc state` calls a killed sandbox running until its parent has waited for it, and `runsc delete` waits for the
same (1.8 s where PID 1 is slow at it; 15 ms this way).

A checkpoint is taken of a sandbox whose processes gVisor holds still (`runsc pause`), and with `--leave-running`: a plain one
kills the sandbox when it fails, and lets the processes run on for a moment when it does not. The file `held` in the
sandbox's directory says so to a server that comes later.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import hashlib
import json
import os
import re
import shutil
import signal
import stat
import time
from collections.abc import Awaitable, Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tenure.errors import Conflict, ImageUnusable, InvalidArgument, NotFound, SandboxError
from tenure.offices.sandboxes import images, oci
from tenure.offices.sandboxes.base import SandboxDriver, SandboxSpec, SandboxState, SandboxUsage
from tenure.offices.sandboxes.cgroups import Cgroup
from tenure.offices.sandboxes.fit import fit_of
from tenure.offices.sandboxes.images import Fit
from tenure.offices.sandboxes.readonly import run_with_read_only
from tenure.offices.tools import LAST_WORDS_CHARS, ToolResult, run_tool

START_TIMEOUT_S = 60.0
STARTS_AT_ONCE_MAX = 4
"""More do not start sooner: each takes all of a processor."""
CHECKPOINTS_AT_ONCE_MAX = 2
CHECKPOINT_TIMEOUT_S = 120.0
HOLD_TIMEOUT_S = 60.0
LET_GO_TIMEOUT_S = 300.0
"""It waits for a checkpoint that was given up; and gVisor dies of being asked twice."""
SIGNAL_TIMEOUT_S = 10.0
FREEZE_TIMEOUT_S = 10.0
KILL_TIMEOUT_S = 30.0
POLL_S = 0.005
MEMORY_FILE = "runsc-memory"
"""gVisor's name for the file that holds the memory of all processes inside."""
ID_PATTERN = re.compile(r"[a-z0-9-]{1,80}")
FLAGS = ("--platform=systrap", "--network=none", "--overlay2=none", "--host-uds=open")
HOST_SOCKET_OPEN = "SCMConnectedEndpoint"
"""The type over which saving stumbles then, with a nil dereference."""
HELD = "held"
FIT = "fit.json"
NOT_HELD = "cannot resume container"
"""What runsc says of one that runs, or that it does not know to be paused."""
CONTROL_SOCKET_DIRS = ("/var/run", "/run", "/tmp")
"""Where runsc puts its control socket when the path below `runsc_root` is too long for one."""


class GvisorDriver(SandboxDriver):
    """Drives the `runsc` on the system's PATH. Needs root."""

    name = "gvisor"
    isolates = True

    def __init__(self, runsc_root: Path) -> None:
        self._root = runsc_root
        self._group = f"/tenure/{_short_hash(os.fspath(runsc_root))}"
        self._starting: set[str] = set()
        self._start_slots = asyncio.Semaphore(STARTS_AT_ONCE_MAX)
        self._checkpointing: set[str] = set()
        self._checkpoint_slots = asyncio.Semaphore(CHECKPOINTS_AT_ONCE_MAX)

    # --- life ------------------------------------------------------------------------------------------------------
    async def start(self, spec: SandboxSpec, *, image: Path | None = None, binding: str = "") -> None:
        if spec.id in self._starting or await self.state(spec.id) in (SandboxState.RUNNING, SandboxState.PAUSED):
            raise Conflict(f"The sandbox {spec.id} is running already.")
        self._starting.add(spec.id)
        try:
            async with self._start_slots:
                await self._clean_up(spec.id)
                await self._boot(spec, image, binding)
        except BaseException:
            await asyncio.shield(self._clean_up(spec.id))
            raise
        finally:
            self._starting.discard(spec.id)

    async def stop(self, sandbox_id: str, *, grace_s: float = 2.0) -> None:
        state = await self.state(sandbox_id)
        if sandbox_id in self._checkpointing:
            grace_s = 0
        elif state is SandboxState.PAUSED and grace_s > 0:
            with contextlib.suppress(SandboxError):  # one that cannot be let go is killed
                if self._is_held(sandbox_id):
                    await self._let_go(sandbox_id, timeout_s=SIGNAL_TIMEOUT_S)
                else:
                    await self.resume(sandbox_id)
        if state in (SandboxState.RUNNING, SandboxState.PAUSED) and grace_s > 0:
            cgroup = self._cgroup(sandbox_id)
            pid = self._sentry_pid(sandbox_id)
            await self._terminate(sandbox_id, grace_s)
            await _wait_until(lambda: pid not in cgroup.pids(), grace_s)
        await self._clean_up(sandbox_id)

    async def state(self, sandbox_id: str) -> SandboxState:
        directory, cgroup = self._directory(sandbox_id), self._cgroup(sandbox_id)
        pids = cgroup.pids()
        sentry = self._sentry_pid(sandbox_id)
        if sentry in pids or (sentry is None and pids):
            return SandboxState.PAUSED if cgroup.is_frozen or self._is_held(sandbox_id) else SandboxState.RUNNING
        return SandboxState.DEAD if pids or directory.exists() else SandboxState.ABSENT

    async def pause(self, sandbox_id: str) -> None:
        await self._freeze(sandbox_id, frozen=True)

    async def resume(self, sandbox_id: str) -> None:
        if sandbox_id in self._checkpointing:
            raise Conflict(f"The sandbox {sandbox_id} is being checkpointed.")
        if self._is_held(sandbox_id) and await self.state(sandbox_id) is SandboxState.PAUSED:
            await _to_its_end(self._let_go(sandbox_id))  # a server died over its checkpoint
        else:
            await self._freeze(sandbox_id, frozen=False)

    async def usage(self, sandbox_id: str) -> SandboxUsage:
        if await self.state(sandbox_id) not in (SandboxState.RUNNING, SandboxState.PAUSED):
            raise NotFound(f"The sandbox {sandbox_id} is not running.")
        cgroup = self._cgroup(sandbox_id)
        return SandboxUsage(cgroup.memory_bytes, cgroup.cpu_s, cgroup.tasks, cgroup.tasks_max, cgroup.oom_kills)

    async def kill_largest(self, sandbox_id: str, *, least_bytes: int) -> int | None:
        # Each process inside has one of the host's, whose end is its end; gVisor's own are not chosen.
        held = {pid: _mapped_bytes(pid) for pid in self._cgroup(sandbox_id).pids() if not _is_runtime(pid)}
        largest = max(held, key=lambda pid: held[pid], default=0)
        if held.get(largest, -1) < least_bytes:
            return None
        with contextlib.suppress(ProcessLookupError):
            os.kill(largest, signal.SIGKILL)
        return held[largest]

    def limited(self) -> list[str]:
        return Cgroup(self._group).children()

    def memory_left(self, sandbox_id: str) -> int | None:
        cgroup = self._cgroup(sandbox_id)
        limit_bytes = cgroup.memory_limit_bytes
        if limit_bytes is None:
            return None
        office_bytes = limit_bytes - oci.RUNTIME_BYTES
        charged = cgroup.memory_charged_bytes
        # What is charged has cached files in it; telling them apart costs more.
        return office_bytes - (charged if charged < office_bytes else cgroup.memory_bytes)

    async def ids(self) -> list[str]:
        found = set(Cgroup(self._group).children())
        with contextlib.suppress(FileNotFoundError):
            found.update(entry.name for entry in self._root.iterdir() if ID_PATTERN.fullmatch(entry.name))
        return [name for name in sorted(found) if await self.state(name) is not SandboxState.ABSENT]

    # --- start ---------------------------------------------------------------------------------------------------------
    async def _boot(self, spec: SandboxSpec, image: Path | None, binding: str) -> None:
        directory = self._directory(spec.id)
        directory.mkdir(parents=True)
        _keep_tmp_on_disk(spec.root)
        cgroup = self._cgroup(spec.id)
        manifest = await asyncio.to_thread(images.read_manifest, image) if image else None
        tini = manifest.tini if manifest else _has_tini(spec.root)
        configuration = oci.config(spec, cgroup_path=cgroup.path, tini=tini)
        fit = await asyncio.to_thread(fit_of, spec, configuration, FLAGS, binding)
        if image and manifest:
            await _to_its_end(asyncio.to_thread(images.check, image, manifest, fit))
        (directory / "config.json").write_text(json.dumps(configuration))
        (directory / FIT).write_text(json.dumps({"fit": asdict(fit), "tini": tini}))
        await self._run_detached(spec, directory, image)
        cgroup.limit_cpu(spec.limits.cpus)
        _spare_the_runtime(cgroup)

    async def _run_detached(self, spec: SandboxSpec, directory: Path, image: Path | None) -> None:
        """Returns when PID 1 runs. Its stdio is /dev/null: nothing that it could fill, and no pipe that we wait on."""
        how = ["restore", "--image-path", str(image)] if image else ["run"]
        words = self._runsc(spec.id, *how, "--detach", "--bundle", str(directory))
        words += ["--pid-file", str(directory / "pid"), _container_id(directory)]
        read_only = (spec.officed_dir, spec.doorway)
        try:
            if await run_with_read_only(read_only, words, timeout_s=START_TIMEOUT_S):
                raise SandboxError(
                    f"The sandbox {spec.id} did not start: {_last_words(directory / 'runsc.log')}",
                    hint="Its volume is unharmed. `tenure doctor` checks whether sandboxes start at all.",
                )
        except SandboxError as error:
            if image is None:
                raise
            raise ImageUnusable(f"The memory image {image.name} cannot be used: {error.message}") from error

    # --- checkpoint ------------------------------------------------------------------------------------------------------
    async def checkpoint(self, sandbox_id: str, image: Path, *, binding: str) -> None:
        state = await self.state(sandbox_id)
        if state is not SandboxState.RUNNING or sandbox_id in self._checkpointing:
            raise Conflict(f"The sandbox {sandbox_id} is {state}, not running, or is being checkpointed already.")
        if image.exists() or image.is_symlink():
            raise Conflict(f"There is something at {image} already.")
        fit, tini = _started_with(self._directory(sandbox_id), binding)
        self._checkpointing.add(sandbox_id)
        try:
            async with self._checkpoint_slots:
                try:
                    await _to_its_end(self._hold(sandbox_id))
                    await self._save(sandbox_id, await asyncio.to_thread(images.begin, image))
                    await _to_its_end(asyncio.to_thread(images.seal, image, fit, tini=tini))
                except BaseException as error:
                    await _to_its_end(self._give_up(sandbox_id, image, error))
                    raise
                await _to_its_end(self._replace(sandbox_id, image))
        finally:
            self._checkpointing.discard(sandbox_id)

    async def _hold(self, sandbox_id: str) -> None:
        result = await self._ask_held(sandbox_id, "pause", timeout_s=HOLD_TIMEOUT_S)
        if result.exit_code:
            raise SandboxError(f"The processes of {sandbox_id} cannot be held still: {_first_words(result.stderr)}")

    async def _let_go(self, sandbox_id: str, *, timeout_s: float = LET_GO_TIMEOUT_S) -> None:
        result = await self._ask_held(sandbox_id, "resume", timeout_s=timeout_s)
        if result.exit_code and NOT_HELD not in result.stderr:
            raise SandboxError(f"The processes of {sandbox_id} cannot be let go: {_first_words(result.stderr)}")
        (self._directory(sandbox_id) / HELD).unlink(missing_ok=True)

    async def _save(self, sandbox_id: str, partial: Path) -> None:
        words = ("checkpoint", "--leave-running", "--compression=none", "--image-path", str(partial))
        result = await self._ask_held(sandbox_id, *words, timeout_s=CHECKPOINT_TIMEOUT_S)
        if result.exit_code:
            raise SandboxError(f"The memory of {sandbox_id} cannot be saved: {_first_words(result.stderr)}")

    async def _ask_held(self, sandbox_id: str, *words: str, timeout_s: float) -> ToolResult:
        """Runs a command of runsc on a sandbox that is marked as held. Each has the mark locked until it ends, so that one which
        a dead server left at work is over first: its `pause` after our `resume` would be for ever."""
        directory = self._directory(sandbox_id)
        try:
            mark = os.open(directory / HELD, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise SandboxError(f"The sandbox {sandbox_id} is gone: {error}.") from error
        try:
            if not await _wait_until(lambda: _try_lock(mark), timeout_s):
                raise SandboxError(f"What a dead server began with {sandbox_id} is not over after {timeout_s:.0f} s.")
            command = self._runsc(sandbox_id, *words, _container_id(directory))
            return await run_tool(command, timeout_s=timeout_s, raises=SandboxError, pass_fds=(mark,))
        finally:
            os.close(mark)

    async def _give_up(self, sandbox_id: str, image: Path, error: BaseException) -> None:
        """Lets the sandbox run on as if nothing had been tried. Raises `SandboxError` for what is not a cancellation."""
        if await self.state(sandbox_id) is SandboxState.PAUSED:
            with contextlib.suppress(SandboxError):
                await self._let_go(sandbox_id)
        with contextlib.suppress(OSError):  # what stays is replaced at the next attempt
            await asyncio.to_thread(images.discard, image)
        if isinstance(error, SandboxError | OSError):
            state = await self.state(sandbox_id)
            reason = (
                error.message if isinstance(error, SandboxError) else f"The memory image cannot be written: {error}."
            )
            raise SandboxError(f"{reason} The sandbox is {state}.", details={"state": str(state)}) from error

    async def _replace(self, sandbox_id: str, image: Path) -> None:
        """The image takes the sandbox's place: first nothing runs any more, then there is an image."""
        await self._end_all(sandbox_id)
        await asyncio.to_thread(images.publish, image)
        await self._clean_up(sandbox_id)

    # --- end -----------------------------------------------------------------------------------------------------------
    async def _terminate(self, sandbox_id: str, grace_s: float) -> None:
        """SIGTERM to PID 1. A sandbox that does not take it is killed later, so that failing here is no failure."""
        with contextlib.suppress(SandboxError):
            container = _container_id(self._directory(sandbox_id))
            words = self._runsc(sandbox_id, "kill", container, "TERM")
            await run_tool(words, timeout_s=min(SIGNAL_TIMEOUT_S, grace_s), raises=SandboxError)

    async def _clean_up(self, sandbox_id: str) -> None:
        """Kills what is left and removes every trace; does nothing when there is none."""
        directory = self._directory(sandbox_id)
        await self._end_all(sandbox_id)
        if directory.exists():
            for fallback in CONTROL_SOCKET_DIRS:
                Path(fallback, f"runsc-{_container_id(directory)}.sock").unlink(missing_ok=True)
            shutil.rmtree(directory)
        if self._starting <= {sandbox_id}:
            Cgroup(self._group).remove()  # refused by the kernel while another sandbox of this home is there

    async def _end_all(self, sandbox_id: str) -> None:
        """Kills all processes and removes the control group."""
        cgroup = self._cgroup(sandbox_id)

        def ended() -> bool:
            if not cgroup.pids():
                return cgroup.remove()
            if not cgroup.is_v2 and cgroup.is_frozen:  # v1 delivers SIGKILL only after thawing
                cgroup.freeze(frozen=False)
            cgroup.kill()
            return False

        if not await _wait_until(ended, KILL_TIMEOUT_S):
            raise SandboxError(f"Processes of the sandbox {sandbox_id} could not be ended: {sorted(cgroup.pids())}.")

    async def _freeze(self, sandbox_id: str, *, frozen: bool) -> None:
        needed = SandboxState.RUNNING if frozen else SandboxState.PAUSED
        if (state := await self.state(sandbox_id)) is not needed:
            raise Conflict(f"The sandbox {sandbox_id} is {state}, not {needed}.")
        cgroup = self._cgroup(sandbox_id)
        try:
            cgroup.freeze(frozen=frozen)
        except OSError as error:
            raise SandboxError(f"The sandbox {sandbox_id} cannot be frozen or thawed: {error}.") from error
        if not await _wait_until(lambda: cgroup.is_frozen == frozen, FREEZE_TIMEOUT_S):
            if frozen:  # or it would freeze later, when nobody thaws it any more
                cgroup.freeze(frozen=False)
            raise SandboxError(f"The sandbox {sandbox_id} did not freeze or thaw in {FREEZE_TIMEOUT_S:.0f} s.")

    # --- names ---------------------------------------------------------------------------------------------------------
    def _directory(self, sandbox_id: str) -> Path:
        if not ID_PATTERN.fullmatch(sandbox_id):
            raise InvalidArgument(f"{sandbox_id!r} cannot be a sandbox's id: use a-z, 0-9 and '-'.")
        return self._root / sandbox_id

    def _cgroup(self, sandbox_id: str) -> Cgroup:
        return Cgroup(f"{self._group}/{sandbox_id}")

    def _runsc(self, sandbox_id: str, *words: str) -> list[str]:
        directory = self._directory(sandbox_id)
        return [
            "runsc", "--root", str(directory / "runsc"), "--log", str(directory / "runsc.log"),
            *FLAGS, *words,
        ]  # fmt: skip

    def _is_held(self, sandbox_id: str) -> bool:
        """Whether gVisor holds its processes for a checkpoint, or did when its server died."""
        return (self._directory(sandbox_id) / HELD).exists()

    def _sentry_pid(self, sandbox_id: str) -> int | None:
        """Process id of gVisor's kernel for this sandbox; None when it never started. Only as good as the group says."""
        with contextlib.suppress(OSError, ValueError):
            return int((self._directory(sandbox_id) / "pid").read_text())
        return None


def _container_id(directory: Path) -> str:
    """runsc's own name for the sandbox: short, for the paths of its sockets, and unique on the host."""
    return f"office-{_short_hash(os.fspath(directory))}"


def _short_hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:10]


def _has_tini(root: Path) -> bool:
    with contextlib.suppress(OSError):
        status = os.lstat(f"{root}{oci.TINI}")
        return stat.S_ISREG(status.st_mode) and bool(status.st_mode & stat.S_IXUSR) and status.st_size > 0
    return False


def _keep_tmp_on_disk(root: Path) -> None:
    """runsc hides an *empty* /tmp behind one in memory, which would count against the memory limit and not persist.
    The office may have put a link there: it must not lead us out of its root."""
    with contextlib.suppress(OSError):
        tmp = os.open(root / "tmp", os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        try:
            with os.scandir(tmp) as entries:
                empty = next(entries, None) is None
            if empty:
                os.mkdir(".keep", 0o700, dir_fd=tmp)
        finally:
            os.close(tmp)


def _spare_the_runtime(cgroup: Cgroup) -> None:
    """Makes the kernel, past the memory limit, choose a process inside before gVisor itself: measured, an ordinary leak then
    ends the leaking process (3 of 3), where otherwise it ends the whole sandbox (3 of 3)."""
    for pid in cgroup.pids():
        if _is_runtime(pid):
            with contextlib.suppress(OSError):
                Path(f"/proc/{pid}/oom_score_adj").write_text("0")


def _try_lock(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _started_with(directory: Path, binding: str) -> tuple[Fit, bool]:
    """What a sandbox was started with: programs and configuration may have been replaced since."""
    try:
        found: dict[str, Any] = json.loads((directory / FIT).read_text())
        return Fit(**{**found["fit"], "binding": binding}), found["tini"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise SandboxError(
            f"It is not known what the sandbox {directory.name} was started with.",
            hint="An older version of Tenure started it: restart it once.",
            details={"state": str(SandboxState.RUNNING)},
        ) from error


def _first_words(stderr: str) -> str:
    """The reason that runsc gives, without its stack."""
    if HOST_SOCKET_OPEN in stderr:
        return "something in it holds a connection to the host."
    first = next((line for line in stderr.splitlines() if line.strip()), "runsc gave no reason")
    return first.rpartition("encoding error: ")[2].strip(" :")[-LAST_WORDS_CHARS:] + "."


def _is_runtime(pid: int) -> bool:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes().startswith(b"runsc-")
    return True  # it has just ended


def _mapped_bytes(pid: int) -> int:
    """What a process inside has of the sandbox's memory: its host process maps it from one file for all, piece by piece as it
    is used. (Measured: 207 MiB for a program that holds 200; the resident size says 14.)"""
    mapped = 0
    with contextlib.suppress(OSError, ValueError):
        for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
            if MEMORY_FILE in line:
                begin, _, end = line.split(maxsplit=1)[0].partition("-")
                mapped += int(end, 16) - int(begin, 16)
    return mapped


def _last_words(log: Path) -> str:
    """The message of the last line of runsc's log (JSON lines)."""
    try:
        lines = log.read_text(errors="replace").strip().splitlines()
        return str(json.loads(lines[-1])["msg"])[-LAST_WORDS_CHARS:]
    except (OSError, IndexError, ValueError, KeyError):
        return "runsc gave no reason."


async def _to_its_end(work: Awaitable[None]) -> None:
    """Awaits `work` to its end even when cancelled: what it half did could not be undone."""
    task, cancelled = asyncio.ensure_future(work), False
    while not task.done():
        try:
            await asyncio.shield(task)
        except asyncio.CancelledError:
            if task.done():
                break
            cancelled = True
    if cancelled and not task.cancelled() and task.exception() is None:
        raise asyncio.CancelledError
    task.result()


async def _wait_until(done: Callable[[], bool], timeout_s: float) -> bool:
    """Asks `done` every few milliseconds; False when `timeout_s` passed first."""
    deadline = time.monotonic() + timeout_s
    while not done():
        if time.monotonic() >= deadline:
            return False
        await asyncio.sleep(POLL_S)
    return True
