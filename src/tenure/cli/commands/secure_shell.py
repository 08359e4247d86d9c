"""tenure ssh | ssh-proxy: OpenSSH's own client to an office, through the server."""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import shutil
import sys
import threading
from typing import TYPE_CHECKING, Annotated

import typer

from tenure.cli.command import OFFICE, command
from tenure.cli.commands.agents import AgentName
from tenure.cli.session import Session
from tenure.errors import InvalidArgument, NotFound, ServerUnreachable, SetupError, Unauthenticated, from_payload
from tenure.names import check_name

if TYPE_CHECKING:
    from websockets.sync.client import ClientConnection

CHUNK_BYTES = 64 * 1024
ROOM_WAIT_S = 1.0


def ssh_proxy(session: Session, agent: AgentName) -> None:
    """Carry an SSH connection to an office over stdin and stdout.

    For ~/.ssh/config: ProxyCommand tenure ssh-proxy %h"""
    from websockets.exceptions import ConnectionClosed

    from tenure.cli.streams import write_to
    from tenure.client.attach import open_websocket

    if session.json:
        raise InvalidArgument("ssh-proxy carries bytes; there is nothing to say in JSON.")
    write = write_to(sys.stdout.fileno())
    with open_websocket(session.endpoint, f"/v1/agents/{check_name(agent)}/ssh") as websocket:
        threading.Thread(target=_send, args=(websocket,), daemon=True).start()
        try:
            while True:
                frame = websocket.recv()
                if isinstance(frame, str):
                    raise from_payload(json.loads(frame))
                write(frame)
        except ConnectionClosed as error:
            if error.rcvd is None or error.rcvd.code != 1000:
                raise ServerUnreachable("The connection to the office broke.") from error


def _send(websocket: ClientConnection) -> None:
    from websockets.exceptions import ConnectionClosed

    from tenure.client.attach import has_room

    with contextlib.suppress(ConnectionClosed, OSError):
        while data := os.read(sys.stdin.fileno(), CHUNK_BYTES):
            while not has_room(websocket, ROOM_WAIT_S):
                pass  # the connection may have been closed meanwhile, which only the next question sees
            websocket.send(data)
        websocket.close()


def ssh(
    session: Session,
    agent: AgentName,
    arguments: Annotated[
        list[str] | None,
        typer.Argument(metavar="SSH-ARGUMENT", show_default=False, help="Passed on to ssh, after --."),
    ] = None,
) -> None:
    """Connect to an office with OpenSSH's client.

    For what only it can: port forwards, rsync, editors. Becomes the ssh process."""
    program = shutil.which("ssh")
    if program is None:
        raise SetupError("There is no ssh client on this machine.", hint="apt install openssh-client")
    words = ssh_words(session, check_name(agent), arguments or [])
    if session.json:
        from tenure.cli import output

        output.print_json({"argv": [program, *words[1:]]})
        return
    os.execv(program, words)


def ssh_words(session: Session, agent: str, arguments: list[str]) -> list[str]:
    """The ssh command line. Raises `NotFound` without the owner's key."""
    key = session.settings.keys_dir / "id_ed25519"
    try:
        key.open("rb").close()
    except FileNotFoundError:
        raise NotFound(f"There is no SSH key {key}.", hint="`tenure setup` makes it.") from None
    except PermissionError:
        raise Unauthenticated(
            f"This user may not read the owner's SSH key ({key}).",
            hint="Run it as the user who set Tenure up (`sudo tenure …`).",
        ) from None
    proxy = shlex.join([sys.executable, "-m", "tenure.cli", "--home", str(session.settings.home), "ssh-proxy", agent])
    options = {
        "ProxyCommand": proxy.replace("%", "%%"),
        "IdentityFile": str(key),
        "IdentitiesOnly": "yes",
        # The way to the office is the server's socket, which has proved itself; a host key would add nothing.
        "StrictHostKeyChecking": "no",
        "UserKnownHostsFile": "/dev/null",
        "LogLevel": "ERROR",
    }
    flags = [word for name, value in options.items() for word in ("-o", f"{name}={value}")]
    # Options of ssh go before the host, a command after it: as ssh itself, take what begins with '-' for an option.
    return ["ssh", *flags, *_before_host(arguments), f"agent@{agent}", *_after_host(arguments)]


WITH_VALUE = frozenset("BbcDEeFIiJLlmOoPpQRSWw")
"""ssh's options that take a value."""


def _split(arguments: list[str]) -> int:
    """How many words belong before the host."""
    at = 0
    while at < len(arguments) and arguments[at].startswith("-") and arguments[at] != "--":
        takes_value = len(arguments[at]) == 2 and arguments[at][1] in WITH_VALUE
        at += 2 if takes_value else 1
    return min(at, len(arguments))


def _before_host(arguments: list[str]) -> list[str]:
    return arguments[: _split(arguments)]


def _after_host(arguments: list[str]) -> list[str]:
    return arguments[_split(arguments) :]


def register(app: typer.Typer) -> None:
    command(app, "ssh", rich_help_panel=OFFICE)(ssh)
    command(app, "ssh-proxy", rich_help_panel=OFFICE)(ssh_proxy)
