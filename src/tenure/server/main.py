"""The server process: takes its home, starts what it stands on, listens, keeps a worker, and puts all to rest at the end.

`python -m tenure.server` runs it; `tenure up` (see `daemon`) runs that in the background. What is started here in one order
is stopped in the other: worker, listeners, offices, control database, lock. A `kill -9` stops nothing but this process
and its worker; the next start finds and adopts the rest.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import logging
import os
import resource
import signal
import sys
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING

import uvloop
from starlette.types import ASGIApp

from tenure.database import migrate
from tenure.errors import InternalError, SetupError, TenureError
from tenure.identity.tokens import Tokens
from tenure.postgres.control import start_control_database, stop_control_database
from tenure.server.home import HomeLock, log_file, prepare_home, start_failure_file
from tenure.server.keeper import WorkerKeeper
from tenure.server.listeners import bind_loopback, bind_tcp, bind_unix, listen
from tenure.server.logs import configure_logging
from tenure.settings import Settings
from tenure.setup import ensure_pool_mounted

if TYPE_CHECKING:
    from tenure.server.gateway.ssh import SshGateway

log = logging.getLogger("tenure.server")

STEP_STOP_TIMEOUT_S = 60.0
"""For each part that is stopped; then the next one's turn comes."""
OF_SETTINGS = frozenset(
    {
        "TENURE_HOME",
        "TENURE_PORT",
        "TENURE_SSH_PORT",
        "TENURE_SSH_HOST",
        "TENURE_S3_PORT",
        "TENURE_POOL_GB",
        "TENURE_DATABASE_URL",
        "TENURE_DEBUG",
        "TENURE_SNAPSHOTS_LAST",
        "TENURE_SNAPSHOTS_HOURLY",
        "TENURE_SNAPSHOTS_DAILY",
        "TENURE_PAUSE_AFTER_S",
        "TENURE_HIBERNATE_AFTER_S",
        "TENURE_STOP_AFTER_S",
        "TENURE_URL",
        "TENURE_TOKEN",
        "TENURE_EXPORT_KEY",
    }
)
"""What `Settings.from_environment` reads; the last three are for clients."""
WORKER_ARGV = (sys.executable, "-m", "tenure.work.worker")


@dataclass(frozen=True)
class Ground:
    """What the rest of a server is built on."""

    settings: Settings
    tokens: Tokens
    dsn: str
    worker_pids: Callable[[], list[int]]
    ssh_problem: str = ""
    """Why there is no SSH gateway though one is wanted."""
    s3_problem: str = ""
    """Why the S3 API does not listen outside though it should."""


@dataclass(frozen=True)
class Built:
    """A server's app, and what becomes of the claims of a dead worker. `web` is what its TCP port serves: the app and the
    previews; `ssh` is its SSH gateway; `s3` is the S3 API for clients outside."""

    app: ASGIApp
    worker_name: Callable[[int], str]
    release_claims: Callable[[str], Awaitable[object]]
    web: ASGIApp | None = None
    ssh: SshGateway | None = None
    s3: ASGIApp | None = None


Build = Callable[[Ground], AbstractAsyncContextManager[Built]]
"""Makes the services and the app; leaving it puts the offices to sleep. `tenure.server.build.build` is the real one."""


async def serve(
    settings: Settings, build: Build, worker_argv: Sequence[str] = WORKER_ARGV, *, stop_at_once: bool = False
) -> None:
    """Runs until cancelled. `stop_at_once` only adopts what an earlier server left running, and puts it to rest. Raises
    `SetupError`, `Conflict` and what the parts raise."""
    async with AsyncExitStack() as stack:
        prepare_home(settings)
        stack.enter_context(HomeLock(settings))
        tokens = Tokens.ensure(settings)
        # First, since this is what most often fails, and nothing is to be undone yet.
        sockets = () if stop_at_once else (bind_unix(settings.api_socket, 0o600), bind_loopback(settings.port))
        for sock in sockets:
            stack.callback(sock.close)
        ssh_socket, ssh_problem = None, ""
        if settings.ssh_port and not stop_at_once:
            try:
                ssh_socket = stack.enter_context(bind_tcp(settings.ssh_host, settings.ssh_port, "TENURE_SSH_PORT"))
            except SetupError as error:  # everything else works without: `tenure status` tells it
                ssh_problem = f"{error.message} {error.hint}"
                log.warning("no SSH gateway: %s", ssh_problem)
        s3_socket, s3_problem = None, ""
        if settings.s3_port and not stop_at_once:
            try:
                s3_socket = stack.enter_context(bind_tcp("127.0.0.1", settings.s3_port, "TENURE_S3_PORT"))
            except SetupError as error:  # as with the SSH gateway
                s3_problem = f"{error.message} {error.hint}"
                log.warning("no S3 API outside: %s", s3_problem)
        await asyncio.to_thread(ensure_pool_mounted, settings)
        dsn = await start_control_database(settings)
        stack.push_async_callback(_stopped, "control database", lambda: stop_control_database(settings))
        await asyncio.to_thread(migrate, dsn)
        keeper: WorkerKeeper | None = None
        ground = Ground(settings, tokens, dsn, lambda: keeper.pids if keeper else [], ssh_problem, s3_problem)
        built = await stack.enter_async_context(build(ground))
        if stop_at_once:
            return
        for sock, app, path in zip(
            sockets, (built.app, built.web or built.app), (settings.api_socket, None), strict=True
        ):
            listener = await listen(app, sock, socket_path=path)
            stack.push_async_callback(_stopped, "listener", listener.close)
        if built.ssh is not None and ssh_socket is not None:
            await built.ssh.serve(ssh_socket)
            stack.push_async_callback(_stopped, "SSH gateway", built.ssh.close)
        if built.s3 is not None and s3_socket is not None:
            s3_listener = await listen(built.s3, s3_socket)
            stack.push_async_callback(_stopped, "S3 API", s3_listener.close)
        keeper = WorkerKeeper(
            worker_argv,
            worker_environment(settings, tokens),
            name_of=built.worker_name,
            on_dead=built.release_claims,
        )
        log.info("ready: pid %d, %s and 127.0.0.1:%d", os.getpid(), settings.api_socket, settings.port)
        await keeper.run()


def environment_of(settings: Settings, base: Mapping[str, str]) -> dict[str, str]:
    """`base` such that `Settings.from_environment` of a child process gives these settings."""
    kept = {name: value for name, value in base.items() if name not in OF_SETTINGS}
    kept |= {
        "TENURE_HOME": str(settings.home),
        "TENURE_PORT": str(settings.port),
        "TENURE_SSH_PORT": str(settings.ssh_port),
        "TENURE_SSH_HOST": settings.ssh_host,
        "TENURE_S3_PORT": str(settings.s3_port),
        "TENURE_POOL_GB": str(settings.pool_bytes / 1024**3),
        "TENURE_SNAPSHOTS_LAST": str(settings.snapshots_last),
        "TENURE_SNAPSHOTS_HOURLY": str(settings.snapshots_hourly),
        "TENURE_SNAPSHOTS_DAILY": str(settings.snapshots_daily),
        "TENURE_PAUSE_AFTER_S": str(settings.pause_after_s or 0),
        "TENURE_HIBERNATE_AFTER_S": str(settings.hibernate_after_s or 0),
        "TENURE_STOP_AFTER_S": str(settings.stop_after_s or 0),
    }
    if settings.database_url:
        kept["TENURE_DATABASE_URL"] = settings.database_url
    if settings.debug:
        kept["TENURE_DEBUG"] = "1"
    return kept


def worker_environment(settings: Settings, tokens: Tokens) -> dict[str, str]:
    """The worker shows a token of its own, so that the log tells its calls from the owner's."""
    return {**environment_of(settings, os.environ), "TENURE_TOKEN": tokens.worker, "PYTHONUNBUFFERED": "1"}


async def _stopped(what: str, stop: Callable[[], Awaitable[None]]) -> None:
    try:
        async with asyncio.timeout(STEP_STOP_TIMEOUT_S):
            await stop()
    except Exception:
        log.exception("stopping the %s", what)


# --- the process -----------------------------------------------------------------------------------------------------------
def run(
    settings: Settings,
    build: Build,
    worker_argv: Sequence[str] = WORKER_ARGV,
    *,
    foreground: bool = False,
    stop_at_once: bool = False,
) -> None:
    """Blocks until SIGTERM or SIGINT, or until `serve` ends. Raises what it raises, after writing it where `tenure up`
    looks for it."""
    prepare_home(settings)
    configure_logging(log_file(settings), foreground=foreground, debug=settings.debug)
    _raise_file_limit()
    os.umask(0o022)
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(_until_told(serve(settings, build, worker_argv, stop_at_once=stop_at_once)))
    except Exception as error:
        log.critical("the server ends: %s", error, exc_info=not isinstance(error, TenureError))
        shown = error if isinstance(error, TenureError) else InternalError(f"The server could not start: {error!r}")
        start_failure_file(settings).write_text(json.dumps(shown.to_payload(), default=str))
        raise
    log.info("stopped")


def main(build: Build, worker_argv: Sequence[str] = WORKER_ARGV) -> int:
    """Runs a server as told by the command line and the environment; its exit code."""
    parser = argparse.ArgumentParser(prog="python -m tenure.server")
    parser.add_argument("--foreground", action="store_true", help="log to stderr too")
    parser.add_argument("--stop-at-once", action="store_true", help="only stop what an earlier server left running")
    options = parser.parse_args()
    try:
        run(
            Settings.from_environment(),
            build,
            worker_argv,
            foreground=options.foreground,
            stop_at_once=options.stop_at_once,
        )
    except TenureError as error:
        print(f"{error.message}\n{error.hint}".strip(), file=sys.stderr)
        return error.exit_code
    return 0


async def _until_told(serving: Awaitable[None]) -> None:
    task = asyncio.ensure_future(serving)
    loop = asyncio.get_running_loop()

    def stop() -> None:
        if not task.cancelling():  # a second signal must not break off the stopping
            log.info("stopping")
            task.cancel()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop)
    loop.add_signal_handler(signal.SIGHUP, lambda: None)
    with contextlib.suppress(asyncio.CancelledError):
        await task


def _raise_file_limit() -> None:
    """Each office takes several sockets; the soft limit of 1024 is for programs that use select."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
