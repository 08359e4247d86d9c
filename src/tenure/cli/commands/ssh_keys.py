"""tenure ssh-key add | list | remove · tenure ssh-config: any SSH client to an office, through the SSH gateway."""

from __future__ import annotations

import socket
import sys
from pathlib import Path
from typing import Annotated

import typer

from tenure.cli import output
from tenure.cli.command import OFFICE, command
from tenure.cli.session import Session
from tenure.errors import Conflict, InvalidArgument, NotFound
from tenure.names import check_name

FILE_BYTES_MAX = 16 * 1024
WILDCARDS = ("0.0.0.0", "::")
HOST_KEY_NAME = "tenure-gateway"

ssh_key_app = typer.Typer(help="Public keys that the SSH gateway lets in.")


@command(ssh_key_app, "add")
def add(
    session: Session,
    file: Annotated[
        str,
        typer.Argument(metavar="FILE", show_default=False, help="A public key (~/.ssh/id_ed25519.pub); - for stdin."),
    ],
    comment: Annotated[
        str | None,
        typer.Option("--comment", metavar="TEXT", show_default=False, help="Instead of the comment in the file."),
    ] = None,
) -> None:
    """Let a public key into every office.

    The key stands for you: whoever has its private half may do in every office what you may."""
    added = session.tenure.ssh_keys.add(_read(file), comment)
    if session.json:
        output.print_json(added)
        return
    print(f"{added.id}  {added.fingerprint}")
    output.note("For your ~/.ssh/config: tenure ssh-config")


@command(ssh_key_app, "list")
def list_keys(session: Session) -> None:
    """List the public keys, the oldest first."""
    found = session.tenure.ssh_keys.list()
    if session.json:
        output.print_json({"keys": found})
        return
    if not found:
        output.note("There are no SSH keys. Add yours: tenure ssh-key add ~/.ssh/id_ed25519.pub")
        return
    output.print_table(
        ("ID", "FINGERPRINT", "COMMENT", "OF", "ADDED", "LAST USED"),
        [
            (
                one.id,
                one.fingerprint,
                output.printable(one.comment) or "-",
                one.principal,
                output.human_age(one.created_at),
                output.human_age(one.last_used_at) if one.last_used_at else "never",
            )
            for one in found
        ],
    )


@command(ssh_key_app, "remove")
def remove(
    session: Session,
    key: Annotated[str, typer.Argument(metavar="KEY", show_default=False, help="The key's id or fingerprint.")],
) -> None:
    """Let a public key in no more.

    Connections that came in with it end at once."""
    session.tenure.ssh_keys.remove(key)
    if session.json:
        output.print_json({"removed": key})
    else:
        print(f"The key {key} is removed.")


def _read(file: str) -> str:
    if file == "-":
        return sys.stdin.buffer.read(FILE_BYTES_MAX).decode("utf-8", "replace")
    path = Path(file).expanduser()
    try:
        with path.open("rb") as opened:
            return opened.read(FILE_BYTES_MAX).decode("utf-8", "replace")
    except FileNotFoundError:
        raise NotFound(
            f"There is no file {path}.",
            hint="`ssh-keygen -t ed25519` makes a pair of keys; give the file that ends in .pub.",
        ) from None
    except OSError as error:
        raise InvalidArgument(f"Cannot read {path}: {error.strerror}.") from None


# --- ssh-config ------------------------------------------------------------------------------------------------------------
def ssh_config(
    session: Session,
    agents: Annotated[
        list[str] | None,
        typer.Argument(metavar="[AGENT]...", show_default=False, help="Only these; without, every agent there is."),
    ] = None,
    host: Annotated[
        str | None,
        typer.Option("--host", metavar="NAME", show_default=False, help="How your client's machine reaches this one."),
    ] = None,
) -> None:
    """Print what to put into ~/.ssh/config, so that `ssh AGENT.tenure` leads into an office.

    With it, scp, sftp, rsync, git and editors know the way, too. It names the gateway's host key, so nothing is to be
    confirmed at the first connection."""
    names = [check_name(name) for name in agents or ()] or [one.name for one in session.tenure.agents.list()]
    gateway = session.tenure.ssh_gateway()
    if not gateway.enabled:
        raise Conflict(
            gateway.problem or "The SSH gateway is off (TENURE_SSH_PORT is 0).",
            hint="Start the server with a TENURE_SSH_PORT, or use `tenure ssh`, which needs none.",
        )
    reached = host or (socket.gethostname() if gateway.host in WILDCARDS else gateway.host)
    if session.json:
        output.print_json({"host": reached, "port": gateway.port, "host_key": gateway.host_key, "agents": names})
        return
    print(config_text(names, reached, gateway.port, gateway.host_key), end="")


def config_text(agents: list[str], host: str, port: int, host_key: str) -> str:
    """A block for ~/.ssh/config. OpenSSH 8.5 or newer."""
    lines = [f"# Tenure's offices: `ssh {agents[0] if agents else 'AGENT'}.tenure`. Made by `tenure ssh-config`."]
    for name in agents:
        lines += [f"Host {name}.tenure", f"    User {name}"]
    lines += [
        "Host *.tenure",
        f"    HostName {host}",
        f"    Port {port}",
        f"    HostKeyAlias {HOST_KEY_NAME}",
        f"    KnownHostsCommand /bin/echo {HOST_KEY_NAME} {host_key}",
        "    StrictHostKeyChecking yes",
        "    ForwardAgent no",
        "    ForwardX11 no",
    ]
    return "\n".join(lines) + "\n"


def register(app: typer.Typer) -> None:
    app.add_typer(ssh_key_app, name="ssh-key", rich_help_panel=OFFICE)
    command(app, "ssh-config", rich_help_panel=OFFICE)(ssh_config)
