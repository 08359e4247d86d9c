"""tenure exec | shell"""

from __future__ import annotations

import contextlib
import os
import sys
import time
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tenure.cli import output
from tenure.cli.command import OFFICE, command
from tenure.cli.commands.agents import AgentName
from tenure.cli.session import Session
from tenure.errors import InvalidArgument

if TYPE_CHECKING:
    from tenure.client.attach import AttachRequest

KEPT_BYTES_MAX = 1024 * 1024
"""Per stream, in the answer of `exec --json`."""

User = Annotated[str, typer.Option("--user", "-u", metavar="NAME", help="The office's user: agent or root.")]
Cwd = Annotated[str | None, typer.Option("--cwd", "-w", metavar="DIR", help="Where to begin; default: its home.")]
Env = Annotated[
    list[str] | None,
    typer.Option("--env", "-e", metavar="KEY=VALUE", help="A variable for the command. May be repeated."),
]


def execute(
    session: Session,
    agent: AgentName,
    argv: Annotated[
        list[str],
        typer.Argument(metavar="COMMAND", show_default=False, help="The command and its arguments, after --."),
    ],
    user: User = "agent",
    cwd: Cwd = None,
    env: Env = None,
    timeout_s: Annotated[
        float | None, typer.Option("--timeout", "-t", min=0.1, metavar="SECONDS", help="End it after this long.")
    ] = None,
    no_stdin: Annotated[bool, typer.Option("--no-stdin", "-n", help="Do not read stdin.")] = False,
    tty: Annotated[bool, typer.Option("--tty", help="Give the command this terminal.")] = False,
) -> int:
    """Run a command in an office: its stdin, stdout, stderr and exit code are ours.

    Byte for byte. Put -- before the command; for a shell's syntax say: -- bash -c '…'. Ctrl-C goes to the command."""
    from tenure.client.attach import AttachRequest

    if tty and session.json:
        raise InvalidArgument("--tty and --json exclude each other.")
    request = AttachRequest(argv=_checked(argv), env=environment(env or []), cwd=cwd, user=user)
    if session.json:
        return _collect(session, agent, request, timeout_s, None if no_stdin else stdin_fd())
    if tty:
        return attach_terminal(session, agent, request, timeout_s)
    return attach_plain(session, agent, request, timeout_s, None if no_stdin else stdin_fd())


def _checked(argv: list[str]) -> list[str]:
    for word in argv:
        try:
            word.encode()
        except UnicodeEncodeError:
            raise InvalidArgument(
                f"The argument {word!r} is not UTF-8 text.", hint="Send such bytes through stdin."
            ) from None
    if not argv[0]:
        raise InvalidArgument("The command's name is empty.")
    return argv


def environment(pairs: list[str]) -> dict[str, str]:
    """Of `KEY=VALUE`; a bare `KEY` takes this environment's value, as `docker exec -e` does."""
    env: dict[str, str] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not key:
            raise InvalidArgument(f"{pair!r} is not a variable.", hint="Write --env KEY=VALUE.")
        if equals:
            env[key] = value
        elif key in os.environ:
            env[key] = os.environ[key]
    return env


def stdin_fd() -> int | None:
    try:
        return sys.stdin.fileno()
    except (AttributeError, ValueError, OSError):
        return None


def attach_plain(
    session: Session, agent: str, request: AttachRequest, timeout_s: float | None, stdin: int | None
) -> int:
    """The command's streams are ours."""
    from tenure.cli.streams import carry, write_to
    from tenure.client.attach import Attachment

    sys.stdout.flush()
    with Attachment(session.endpoint, agent, request) as attachment:
        out, err = write_to(sys.stdout.fileno()), write_to(sys.stderr.fileno())
        return carry(attachment, stdin_fd=stdin, stdout=out, stderr=err, timeout_s=timeout_s)


def attach_terminal(session: Session, agent: str, request: AttachRequest, timeout_s: float | None = None) -> int:
    """The command gets our terminal. Raises `InvalidArgument` when there is none."""
    from dataclasses import replace

    from tenure.cli.streams import carry, raw_terminal, window, write_to
    from tenure.client.attach import Attachment

    if not (output.is_terminal(sys.stdin) and output.is_terminal(sys.stdout)):
        raise InvalidArgument("There is no terminal here.", hint="Use `tenure exec AGENT -- COMMAND` in scripts.")
    env = {"TERM": os.environ.get("TERM", "xterm-256color"), **request.env}
    request = replace(request, tty=window(), env=env)
    stdin, out = sys.stdin.fileno(), write_to(sys.stdout.fileno())
    with Attachment(session.endpoint, agent, request) as attachment, raw_terminal(stdin):
        return carry(attachment, stdin_fd=stdin, stdout=out, stderr=out, tty=True, timeout_s=timeout_s)


class _Kept:
    """The first part of a stream, and how long it was."""

    def __init__(self) -> None:
        self.data = bytearray()
        self.seen_bytes = 0

    def write(self, data: bytes) -> None:
        self.seen_bytes += len(data)
        self.data += data[: KEPT_BYTES_MAX - len(self.data)]


def _collect(session: Session, agent: str, request: AttachRequest, timeout_s: float | None, stdin: int | None) -> int:
    """`exec --json`: the same as without, but output comes in one answer, each stream up to `KEPT_BYTES_MAX`."""
    from tenure.cli.streams import carry
    from tenure.client.attach import Attachment
    from tenure.errors import CommandTimeout

    out, err, began = _Kept(), _Kept(), time.monotonic()
    exit_code: int | None = None
    timed_out: CommandTimeout | None = None
    with Attachment(session.endpoint, agent, request) as attachment:
        try:
            exit_code = carry(attachment, stdin_fd=stdin, stdout=out.write, stderr=err.write, timeout_s=timeout_s)
        except CommandTimeout as error:
            timed_out, exit_code = error, attachment.exit_code
    output.print_json(_answer(exit_code, timed_out is not None, out, err, time.monotonic() - began))
    return timed_out.exit_code if timed_out else exit_code or 0


def _answer(exit_code: int | None, timed_out: bool, out: _Kept, err: _Kept, duration_s: float) -> dict[str, Any]:
    import base64

    return {
        "exit_code": exit_code,
        "timed_out": timed_out,
        "stdout": out.data.decode("utf-8", "replace"),
        "stderr": err.data.decode("utf-8", "replace"),
        "stdout_b64": base64.b64encode(out.data).decode(),
        "stderr_b64": base64.b64encode(err.data).decode(),
        "stdout_bytes": out.seen_bytes,
        "stderr_bytes": err.seen_bytes,
        "truncated": out.seen_bytes > len(out.data) or err.seen_bytes > len(err.data),
        "duration_s": round(duration_s, 3),
    }


def shell(session: Session, agent: AgentName, user: User = "agent", cwd: Cwd = None, env: Env = None) -> int:
    """Open a shell in an office.

    With a terminal when there is one; otherwise it reads commands from stdin."""
    from tenure.client.attach import AttachRequest

    request = AttachRequest(login=True, env=environment(env or []), cwd=cwd, user=user)
    if session.json:
        return _collect(session, agent, request, None, stdin_fd())
    with contextlib.suppress(InvalidArgument):
        return attach_terminal(session, agent, request)
    return attach_plain(session, agent, request, None, stdin_fd())


def register(app: typer.Typer) -> None:
    command(app, "exec", rich_help_panel=OFFICE)(execute)
    command(app, "shell", rich_help_panel=OFFICE)(shell)
