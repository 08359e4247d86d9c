"""tenure up | down | status | setup | doctor | logs | demo"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tenure.cli import output
from tenure.cli.command import SERVER, command
from tenure.cli.session import Session
from tenure.errors import CommandTimeout, InvalidArgument, NotFound, ServerUnreachable, SetupError

if TYPE_CHECKING:
    from rich.console import Console

    from tenure import wire

LINES_DEFAULT = 200
LINES_MAX = 100_000
FOLLOW_S = 3600.0
"""Longest silence of a followed log before we ask anew."""
POLL_S = 0.3
TAIL_BYTES_MAX = 16 * 1024 * 1024


def up(
    session: Session,
    foreground: Annotated[bool, typer.Option("--foreground", help="Stay here, and log to stderr.")] = False,
) -> None:
    """Start the server and its worker.

    Not an error when it runs already."""
    from tenure.server import daemon

    found = daemon.up(session.settings, foreground=foreground)  # With foreground, this process is the server now.
    if found.health is not None:
        _print_health(session, found.health)


def down(session: Session) -> None:
    """Stop the server, its worker, all offices and databases.

    Cleanly: everything stays on disk."""
    from tenure.server import daemon

    ran = daemon.down(session.settings)
    if session.json:
        output.print_json({"state": "stopped", "ran": ran})
    else:
        print("Tenure is stopped." if ran else "Nothing was running.")


def status(session: Session) -> None:
    """Say whether the server runs, and what it has.

    Exit code 6 when it does not."""
    try:
        health = session.tenure.health()
    except ServerUnreachable as error:
        raise _not_answering(session, error) from None
    _print_health(session, health)


def _not_answering(session: Session, error: ServerUnreachable) -> ServerUnreachable:
    """A server that is about to begin or to end deserves another answer than none."""
    from tenure.server import daemon

    if session.settings.url is not None:
        return error
    if not daemon.is_running(session.settings):
        return ServerUnreachable(error.message, hint="Start it with `tenure up`; `tenure doctor` checks this machine.")
    return ServerUnreachable(
        "A server runs, but does not answer.",
        hint="It may be starting or stopping: `tenure logs --server -f` shows what it does.",
    )


def _print_health(session: Session, health: wire.Health) -> None:
    if session.json:
        output.print_json({"state": "running", **output.to_json(health)})
        return
    output.print_fields(
        {
            "state": "running",
            "version": health.version or "-",
            "pid": str(health.pid or "-"),
            "since": output.human_age(health.started_at),
            "address": str(session.endpoint),
            "home": str(session.settings.home),
            "database": health.database or "-",
            "ssh": health.ssh or "-",
            "s3": health.s3 or "-",
            "workers": ", ".join(str(worker.pid) for worker in health.workers) or "none",
            "offices": f"{health.offices.awake} awake, {health.offices.asleep} asleep",
        }
    )


def setup(session: Session) -> None:
    """Install and prepare what the machine lacks.

    Debian packages, the pool for volumes, the base image, PostgreSQL. May be repeated; asks nothing."""
    from tenure.setup import install

    _as_root(session, "setup")
    done = install(session.settings, _console(session))
    if session.json:
        output.print_json({"done": done})


def doctor(
    session: Session, fix: Annotated[bool, typer.Option("--fix", help="Mend what can be mended.")] = False
) -> int:
    """Check every prerequisite, and say what is wrong and how to mend it.

    Exit code 7 when something is wrong."""
    from tenure import setup as machine

    if fix:
        _as_root(session, "doctor", "--fix")
        checks = machine.fix(session.settings, _console(session))
    else:
        checks = machine.doctor(session.settings)
    sound = all(check.ok for check in checks)
    if session.json:
        output.print_json({"ok": sound, "checks": [check.to_json() for check in checks]})
    else:
        _print_checks(checks)
    return 0 if sound else SetupError.exit_code


def _print_checks(checks: list[Any]) -> None:
    width = max(len(check.name) for check in checks)
    for check in checks:
        mark = output.paint("ok ", "green") if check.ok else output.paint("BAD", "bold red")
        said = check.found if check.ok else check.problem
        print(f"{mark}  {check.name.ljust(width)}  {output.printable(said)}")
        if not check.ok and check.mend:
            print(f"     {' ' * width}  {output.paint(output.printable(check.mend), 'cyan')}")


def _as_root(session: Session, *words: str) -> None:
    """Starts the command again by sudo where this user is not root."""
    if os.geteuid() == 0:
        return
    from tenure.setup import become_root

    json_flag = ["--json"] if session.json else []
    become_root(["-m", "tenure.cli", "--home", str(session.settings.home), *words, *json_flag])


def _console(session: Session) -> Console | None:
    """Progress is for people: none with --json; on stderr, so that stdout stays the answer's."""
    if session.json:
        return None
    from rich.console import Console

    return Console(stderr=True, highlight=False)


def logs(
    session: Session,
    agent: Annotated[str | None, typer.Argument(metavar="AGENT", show_default=False)] = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on with what comes.")] = False,
    lines: Annotated[int, typer.Option("--lines", "-n", min=0, max=LINES_MAX, help="The last lines.")] = LINES_DEFAULT,
    server: Annotated[bool, typer.Option("--server", help="The server's own log; needs no server.")] = False,
) -> None:
    """Show what happened to an office, or with --server to the server.

    With --json: one document per line."""
    if server == (agent is not None):
        raise InvalidArgument(
            "Say whose log: an agent's, or --server.", hint="tenure logs AGENT, or tenure logs --server"
        )
    if agent is None:
        from tenure.server.home import log_file

        source = _server_lines(log_file(session.settings), lines, follow)
    else:
        source = _office_lines(session, agent, lines, follow)
    safe = output.is_terminal(sys.stdout)
    for line in source:
        if session.json:
            output.print_json_line({"line": line})
        else:
            print(output.printable(line) if safe else line, flush=follow)


def _office_lines(session: Session, agent: str, lines: int, follow: bool) -> Iterator[str]:
    from tenure.client import calls

    while True:
        call = calls.office_log(agent, lines, follow=follow)
        try:
            with session.tenure.transport.stream(call.within(FOLLOW_S) if follow else call) as response:
                yield from response.iter_lines()
                return
        except CommandTimeout:
            if not follow:
                raise
            lines = 0  # An hour of silence: what was there before has been shown.


def _server_lines(path: Path, lines: int, follow: bool) -> Iterator[str]:
    if not path.exists():
        raise NotFound(f"There is no log {path}.", hint="The server has not run yet: `tenure up`.")
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - TAIL_BYTES_MAX))
        found = file.read().decode("utf-8", "replace").splitlines()
        yield from found[-lines:] if lines else []
        rest = b""
        while follow:
            rest += file.read()
            *whole, rest = rest.split(b"\n")
            yield from (line.decode("utf-8", "replace") for line in whole)
            time.sleep(POLL_S)


def demo(session: Session) -> None:
    """Do a real job on real data, with the server killed in the middle."""
    from rich.console import Console

    from tenure.cli.demo import run_demo

    if session.json:
        raise InvalidArgument(
            "The demo is to be watched: it has no JSON.", hint="`tenure runs show --json` has its run."
        )
    run_demo(session.settings, Console(highlight=False))


def register(app: typer.Typer) -> None:
    for name, function in {
        "up": up,
        "down": down,
        "status": status,
        "setup": setup,
        "doctor": doctor,
        "logs": logs,
        "demo": demo,
    }.items():
        command(app, name, rich_help_panel=SERVER)(function)
