"""Keeps the worker process alive: starts it, starts it again when it ends, and never lets it outlive the server."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import shutil
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence

from tenure.errors import SetupError

log = logging.getLogger("tenure.server")
worker_log = logging.getLogger("tenure.worker")

RESTART_FIRST_S = 0.2
RESTART_MAX_S = 30.0
SOUND_AFTER_S = 30.0
"""A worker that lived this long had nothing wrong with its start: the next restart is quick again."""
FAILURES_LOUD = 5
STOP_GRACE_S = 10.0
LAST_WORDS_WAIT_S = 1.0
OUTPUT_CHUNK_BYTES = 64 * 1024
LINE_CHARS_MAX = 4000


def restart_delay_s(failures: int) -> float:
    """How long to wait before a start after so many short lives in a row (at least 1). It never gives up: a worker that
    cannot start because of something outside comes back when that is mended."""
    return min(RESTART_FIRST_S * 2 ** min(failures - 1, 20), RESTART_MAX_S)


class WorkerKeeper:
    """`run` keeps one worker until cancelled, then stops it. The kernel kills the worker when this process dies."""

    def __init__(
        self,
        argv: Sequence[str],
        environment: Mapping[str, str],
        *,
        name_of: Callable[[int], str],
        on_dead: Callable[[str], Awaitable[object]],
    ) -> None:
        """`name_of` gives the id under which a worker of that pid claims runs; `on_dead` gets it when the worker was
        reaped."""
        self._argv, self._environment = argv, dict(environment)
        self._name_of, self._on_dead = name_of, on_dead
        self._child: asyncio.subprocess.Process | None = None

    @property
    def pids(self) -> list[int]:
        child = self._child
        return [child.pid] if child is not None and child.returncode is None else []

    async def run(self) -> None:
        failures = 0
        while True:
            began_s = time.monotonic()
            code = await self._one_life()
            failures = 1 if time.monotonic() - began_s > SOUND_AFTER_S else failures + 1
            delay_s = restart_delay_s(failures)
            log.log(
                logging.ERROR if failures >= FAILURES_LOUD else logging.WARNING,
                "the worker ended with %s (%d short lives in a row); the next starts in %.1f s",
                code,
                failures,
                delay_s,
            )
            await asyncio.sleep(delay_s)

    async def _one_life(self) -> int:
        setpriv = shutil.which("setpriv")
        if setpriv is None:
            raise SetupError("The program `setpriv` (package util-linux) is missing.")
        # Set by the program that becomes the worker, so that there is no moment without it.
        child = await asyncio.create_subprocess_exec(
            setpriv,
            "--pdeathsig",
            "KILL",
            *self._argv,
            env=self._environment,
            cwd="/",
            start_new_session=True,  # a ^C in the foreground reaches us alone
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        self._child = child
        name = ""
        with contextlib.suppress(ProcessLookupError):
            name = self._name_of(child.pid)
        log.info("worker started, pid %d", child.pid)
        logging_output = asyncio.create_task(_log_output(child.stdout))
        try:
            return await child.wait()
        finally:
            if child.returncode is None:
                await _end(child)
            await asyncio.wait([logging_output], timeout=LAST_WORDS_WAIT_S)
            logging_output.cancel()
            if name:
                await self._tell(name)

    async def _tell(self, name: str) -> None:
        try:
            await self._on_dead(name)
        except Exception:
            # Its claims lapse by themselves a little later.
            log.exception("releasing what the dead worker %s held", name)


async def _end(child: asyncio.subprocess.Process) -> None:
    with contextlib.suppress(ProcessLookupError):
        child.terminate()
    try:
        async with asyncio.timeout(STOP_GRACE_S):
            await child.wait()
    except TimeoutError:
        log.warning("the worker did not end within %g s; killing it", STOP_GRACE_S)
        with contextlib.suppress(ProcessLookupError):
            child.kill()
        await child.wait()


async def _log_output(stream: asyncio.StreamReader | None) -> None:
    if stream is None:
        return
    rest = b""
    while data := await stream.read(OUTPUT_CHUNK_BYTES):
        *lines, rest = (rest + data).split(b"\n")
        for line in lines:
            worker_log.info("%s", line.decode("utf-8", "replace")[:LINE_CHARS_MAX])
        rest = rest[-LINE_CHARS_MAX:]
    if rest:
        worker_log.info("%s", rest.decode("utf-8", "replace"))
