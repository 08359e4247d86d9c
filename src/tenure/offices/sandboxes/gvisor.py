"""Sandboxes as gVisor containers: `runsc` boots them, the host's control groups tell about them and end them.

A sandbox `id` leaves `<runsc_root>/<id>/` (bundle, log, and runsc's own state) and the control group
`/tenure/<hash of runsc_root>/<id>`; both are found again after a restart of the server, and nothing else is remembered.
`runsc` itself is asked only to start, and to deliver SIGTERM. The rest goes to the control group, because `runsc state` calls
a killed sandbox running until its parent has waited for it, and `runsc delete` waits for the same (1.8 s where PID 1 is
slow at it; 15 ms this way).
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import os
import re
import shutil
import stat
import time
from collections.abc import Callable
from pathlib import Path

from tenure.errors import Conflict, InvalidArgument, NotFound, SandboxError
from tenure.offices.sandboxes import oci
from tenure.offices.sandboxes.base import SandboxDriver, SandboxSpec, SandboxState, SandboxUsage
from tenure.offices.sandboxes.cgroups import Cgroup
from tenure.offices.sandboxes.readonly import run_with_read_only
from tenure.offices.tools import LAST_WORDS_CHARS, run_tool

START_TIMEOUT_S = 60.0
STARTS_AT_ONCE_MAX = 4
"""More do not start sooner: each takes all of a processor."""
SIGNAL_TIMEOUT_S = 10.0
FREEZE_TIMEOUT_S = 10.0
KILL_TIMEOUT_S = 30.0
POLL_S = 0.005
ID_PATTERN = re.compile(r"[a-z0-9-]{1,80}")
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

    # --- life ------------------------------------------------------------------------------------------------------
    async def start(self, spec: SandboxSpec) -> None:
        if spec.id in self._starting or await self.state(spec.id) in (SandboxState.RUNNING, SandboxState.PAUSED):
            raise Conflict(f"The sandbox {spec.id} is running already.")
        self._starting.add(spec.id)
        try:
            async with self._start_slots:
                await self._clean_up(spec.id)
                await self._boot(spec)
        except BaseException:
            await asyncio.shield(self._clean_up(spec.id))
            raise
        finally:
            self._starting.discard(spec.id)

    async def stop(self, sandbox_id: str, *, grace_s: float = 2.0) -> None:
        state = await self.state(sandbox_id)
        if state is SandboxState.PAUSED:
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
            return SandboxState.PAUSED if cgroup.is_frozen else SandboxState.RUNNING
        return SandboxState.DEAD if pids or directory.exists() else SandboxState.ABSENT

    async def pause(self, sandbox_id: str) -> None:
        await self._freeze(sandbox_id, frozen=True)

    async def resume(self, sandbox_id: str) -> None:
        await self._freeze(sandbox_id, frozen=False)

    async def usage(self, sandbox_id: str) -> SandboxUsage:
        if await self.state(sandbox_id) not in (SandboxState.RUNNING, SandboxState.PAUSED):
            raise NotFound(f"The sandbox {sandbox_id} is not running.")
        cgroup = self._cgroup(sandbox_id)
        return SandboxUsage(memory_bytes=cgroup.memory_bytes, cpu_s=cgroup.cpu_s, processes=cgroup.tasks)

    async def ids(self) -> list[str]:
        found = set(Cgroup(self._group).children())
        with contextlib.suppress(FileNotFoundError):
            found.update(entry.name for entry in self._root.iterdir() if ID_PATTERN.fullmatch(entry.name))
        return [name for name in sorted(found) if await self.state(name) is not SandboxState.ABSENT]

    # --- start ---------------------------------------------------------------------------------------------------------
    async def _boot(self, spec: SandboxSpec) -> None:
        directory = self._directory(spec.id)
        directory.mkdir(parents=True)
        _keep_tmp_on_disk(spec.root)
        cgroup = self._cgroup(spec.id)
        configuration = oci.config(spec, cgroup_path=cgroup.path, tini=_has_tini(spec.root))
        (directory / "config.json").write_text(json.dumps(configuration))
        await self._run_detached(spec, directory)
        cgroup.limit_cpu(spec.limits.cpus)
        _spare_the_runtime(cgroup)

    async def _run_detached(self, spec: SandboxSpec, directory: Path) -> None:
        """Returns when PID 1 runs. Its stdio is /dev/null: nothing that it could fill, and no pipe that we wait on."""
        words = self._runsc(spec.id, "run", "--detach", "--bundle", str(directory))
        words += ["--pid-file", str(directory / "pid"), _container_id(directory)]
        exit_code = await run_with_read_only((spec.officed_dir, spec.doorway), words, timeout_s=START_TIMEOUT_S)
        if exit_code:
            raise SandboxError(
                f"The sandbox {spec.id} did not start: {_last_words(directory / 'runsc.log')}",
                hint="Its volume is unharmed. `tenure doctor` checks whether sandboxes start at all.",
            )

    # --- end -----------------------------------------------------------------------------------------------------------
    async def _terminate(self, sandbox_id: str, grace_s: float) -> None:
        """SIGTERM to PID 1. A sandbox that does not take it is killed later, so that failing here is no failure."""
        with contextlib.suppress(SandboxError):
            container = _container_id(self._directory(sandbox_id))
            words = self._runsc(sandbox_id, "kill", container, "TERM")
            await run_tool(words, timeout_s=min(SIGNAL_TIMEOUT_S, grace_s), raises=SandboxError)

    async def _clean_up(self, sandbox_id: str) -> None:
        """Kills what is left and removes every trace; does nothing when there is none."""
        directory, cgroup = self._directory(sandbox_id), self._cgroup(sandbox_id)

        def ended() -> bool:
            if not cgroup.pids():
                return cgroup.remove()
            if not cgroup.is_v2 and cgroup.is_frozen:  # v1 delivers SIGKILL only after thawing
                cgroup.freeze(frozen=False)
            cgroup.kill()
            return False

        if not await _wait_until(ended, KILL_TIMEOUT_S):
            raise SandboxError(f"Processes of the sandbox {sandbox_id} could not be ended: {sorted(cgroup.pids())}.")
        if directory.exists():
            for fallback in CONTROL_SOCKET_DIRS:
                Path(fallback, f"runsc-{_container_id(directory)}.sock").unlink(missing_ok=True)
            shutil.rmtree(directory)
        if self._starting <= {sandbox_id}:
            Cgroup(self._group).remove()  # refused by the kernel while another sandbox of this home is there

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
            "--platform=systrap", "--network=none", "--overlay2=none", "--host-uds=open", *words,
        ]  # fmt: skip

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
        with contextlib.suppress(OSError):
            if Path(f"/proc/{pid}/cmdline").read_bytes().startswith(b"runsc-"):
                Path(f"/proc/{pid}/oom_score_adj").write_text("0")


def _last_words(log: Path) -> str:
    """The message of the last line of runsc's log (JSON lines)."""
    try:
        lines = log.read_text(errors="replace").strip().splitlines()
        return str(json.loads(lines[-1])["msg"])[-LAST_WORDS_CHARS:]
    except (OSError, IndexError, ValueError, KeyError):
        return "runsc gave no reason."


async def _wait_until(done: Callable[[], bool], timeout_s: float) -> bool:
    """Asks `done` every few milliseconds; False when `timeout_s` passed first."""
    deadline = time.monotonic() + timeout_s
    while not done():
        if time.monotonic() >= deadline:
            return False
        await asyncio.sleep(POLL_S)
    return True
