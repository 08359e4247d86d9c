"""Runs parsers: processes of their own, in their jails, which tell what a file is and write its rows.

What comes out of one is not trusted either: rows are bytes for the data of a COPY, whatever they are; what is told is checked.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import sys
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, cast

from tenure.data.ingestion.jail import MEMORY_BYTES_MAX, UID_FIRST, Jail
from tenure.data.ingestion.plan import Hints, Outcome, Plan, plan_from
from tenure.errors import InternalError, TenureError, TooLarge, from_payload
from tenure.postgres.confine import Confinement, end_strays, make_cgroups, remove_cgroups

AT_ONCE_MAX = 4
"""Parsers; more loads wait for their turn."""
PIECE_BYTES = 256 * 1024
TOLD_BYTES_MAX = 4 * 1024 * 1024
"""Of one line that a parser tells: a plan of all the columns that there may be."""
REJECTS_FILE = "rejects"
CGROUP = "ingest"
Progress = Callable[[int], None]
"""Told how many bytes of the file have been read."""


@dataclass(frozen=True)
class Reading:
    """`rows` as they come, to be read to the end; then `outcome()`. `rejects` has what was rejected by then."""

    rows: AsyncIterator[bytes]
    outcome: Callable[[], Outcome]
    rejects: Path


@dataclass
class Parsers:
    """`directory` of a load has `file` in it, and nothing else that matters. All methods raise `UsageError`s for what is wrong
    with the file, `TooLarge` for one that needs more than a parser may have, `InternalError` for one that failed otherwise."""

    memory_bytes: int = MEMORY_BYTES_MAX
    _free: list[int] = field(default_factory=lambda: list(range(AT_ONCE_MAX)))
    _turns: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(AT_ONCE_MAX))

    async def survey(self, directory: Path, name: str, hints: Hints) -> Plan:
        order = {"plan": None, "hints": asdict(hints), "name": name}
        async with self._running(directory, order, lambda _: None) as (process, told):
            assert process.stdout is not None
            await process.stdout.read()
            found = await told
            await process.wait()
        if "plan" not in found:
            raise _failed(found, process)
        return plan_from(json.dumps(found["plan"]))

    @contextlib.asynccontextmanager
    async def read(
        self,
        directory: Path,
        plan: Plan,
        progress: Progress,
        *,
        needed: Sequence[int] = (),
        numbered: bool = False,
    ) -> AsyncGenerator[Reading]:
        """The rows of a file. Leaving the block ends the parser."""
        order = {"plan": json.loads(plan.text), "hints": None, "needed": list(needed), "numbered": numbered}
        async with self._running(directory, order, progress) as (process, told):
            found: dict[str, Any] = {}

            async def rows() -> AsyncIterator[bytes]:
                assert process.stdout is not None
                while piece := await process.stdout.read(PIECE_BYTES):
                    yield piece
                found.update(await told)
                await process.wait()
                if "outcome" not in found:
                    raise _failed(found, process)

            yield Reading(rows(), lambda: _outcome(found), directory / REJECTS_FILE)

    @contextlib.asynccontextmanager
    async def _running(
        self, directory: Path, order: dict[str, Any], progress: Progress
    ) -> AsyncGenerator[tuple[asyncio.subprocess.Process, asyncio.Task[dict[str, Any]]]]:
        async with self._turns:
            slot = self._free.pop()
            confinement = Confinement(f"{CGROUP}-{os.getpid()}-{slot}", memory_bytes_max=self.memory_bytes)
            jail = await asyncio.to_thread(self._jail, directory, slot, confinement)
            process, told = None, None
            try:
                process = await _start(directory, order | {"jail": jail.as_json(), "work": str(directory)})
                told = asyncio.ensure_future(_listen(process, progress))
                yield process, told
            finally:
                if process is not None:
                    await _end(process)
                    if told is not None:
                        told.cancel()
                        await asyncio.gather(told, return_exceptions=True)
                await asyncio.to_thread(_tear_down, confinement)
                self._free.append(slot)

    def _jail(self, directory: Path, slot: int, confinement: Confinement) -> Jail:
        """Makes its directory the parser's, empty but for the file."""
        for path in directory.iterdir():
            if path.name != "file":
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        (directory / REJECTS_FILE).touch(0o600)
        if os.geteuid() != 0:
            return Jail()
        uid = UID_FIRST + slot
        os.chown(directory, uid, uid)
        directory.chmod(0o700)
        os.chown(directory / "file", uid, uid)
        (directory / "file").chmod(0o400)
        procs = tuple(str(path / "cgroup.procs") for path in make_cgroups(confinement))
        return Jail(uid, str(directory), procs)


async def _end(process: asyncio.subprocess.Process) -> None:
    """Kills it if it runs, and takes what is left of it."""
    if process.returncode is None:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
    assert process.stdout is not None
    await process.stdout.read()  # ends with the process: else its pipe would stay open
    await process.wait()


async def _start(directory: Path, order: dict[str, Any]) -> asyncio.subprocess.Process:
    order_file = os.memfd_create("order")
    try:
        os.write(order_file, json.dumps(order).encode())
        os.lseek(order_file, 0, os.SEEK_SET)
        with (directory / "file").open("rb") as file, (directory / REJECTS_FILE).open("wb") as rejects:
            return await asyncio.create_subprocess_exec(
                sys.executable,
                "-c",
                _PROGRAM,
                str(order_file),
                str(rejects.fileno()),
                stdin=file,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
                pass_fds=(order_file, rejects.fileno()),
                env=_environment(),
                start_new_session=True,
                limit=TOLD_BYTES_MAX,
            )
    finally:
        os.close(order_file)


_PROGRAM = """\
import os, sys
order, rejects = int(sys.argv[1]), int(sys.argv[2])
order, rejects = os.dup2(order, 60), os.dup2(rejects, 61)
os.dup2(order, 3), os.dup2(rejects, 4)
os.closerange(5, 256)
sys.argv[1:] = []
from tenure.data.ingestion.parse import main
sys.exit(main())
"""
"""Puts what was handed over where `parse` looks for it, whatever numbers it came by."""


def _environment() -> dict[str, str]:
    """No secret of the server's is among them."""
    kept = {name: os.environ[name] for name in ("PATH", "PYTHONPATH", "LD_LIBRARY_PATH") if name in os.environ}
    return kept | {"LC_ALL": "C.UTF-8", "PYTHONUTF8": "1", "PYTHONDONTWRITEBYTECODE": "1"}


async def _listen(process: asyncio.subprocess.Process, progress: Progress) -> dict[str, Any]:
    """What it told last, when it has ended."""
    assert process.stderr is not None
    last: dict[str, Any] = {}
    words = ""
    while True:
        try:
            line = await process.stderr.readline()
        except ValueError:
            return {"words": "it told too much"}
        if not line:
            return last or {"words": words}
        try:
            found: Any = json.loads(line)
        except ValueError:
            words = (words + line.decode("utf-8", "replace"))[-2000:]
            continue
        if not isinstance(found, dict):
            continue
        found = cast("dict[str, Any]", found)
        if isinstance(found.get("read"), int):
            progress(found["read"])
        else:
            last = found


def _failed(found: dict[str, Any], process: asyncio.subprocess.Process) -> TenureError:
    if "error" in found:
        return from_payload(found)
    code = process.returncode
    if code in (-9, -11, -6, 137) or "MemoryError" in str(found) or "SIGXCPU" in str(found) or code == -24:
        return TooLarge(
            "The parser was ended: the file needs more memory or time than a parser may have. Nothing was loaded.",
            hint="Split it, or load it as CSV, NDJSON or Parquet.",
        )
    return InternalError(f"The parser ended with {code} and told nothing: {str(found.get('words', ''))[-500:]}")


def _outcome(found: dict[str, Any]) -> Outcome:
    told = found["outcome"]
    again = told["again"]
    return Outcome(int(told["rows"]), int(told["rejects"]), None if again is None else plan_from(json.dumps(again)))


def _tear_down(confinement: Confinement) -> None:
    end_strays(confinement)
    remove_cgroups(confinement)
