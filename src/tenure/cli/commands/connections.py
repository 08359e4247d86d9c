"""tenure connection create | list | show | check | delete | grant | revoke: databases and APIs elsewhere, under a name."""

from __future__ import annotations

import getpass
import sys
from pathlib import Path
from typing import Annotated

import typer

from tenure.cli import output
from tenure.cli.command import OFFICE, command
from tenure.cli.session import Session
from tenure.errors import InvalidArgument

SECRET_BYTES_MAX = 16 * 1024
CA_BYTES_MAX = 64 * 1024

connection_app = typer.Typer(help="Existing databases and APIs elsewhere, for offices to use without the credential.")
Name = Annotated[str, typer.Argument(metavar="NAME", show_default=False, help="The connection's name.")]
Agent = Annotated[str, typer.Argument(metavar="AGENT", show_default=False, help="The agent's name.")]


@command(connection_app, "create")
def create(
    session: Session,
    name: Name,
    url: Annotated[
        str,
        typer.Argument(
            metavar="URL",
            show_default=False,
            help="postgres://user@host:5432/database, https://host/path, clickhouse://user@host, mysql://host, tcp://host:port.",
        ),
    ],
    password_stdin: Annotated[
        bool, typer.Option("--password-stdin", help="Read the password or token from stdin.")
    ] = False,
    auth: Annotated[
        str | None,
        typer.Option(
            "--auth", metavar="HOW", show_default=False, help="How an HTTP API gets it: bearer, basic or header:NAME."
        ),
    ] = None,
    private: Annotated[bool, typer.Option("--private", help="It may lead to this machine or its networks.")] = False,
    ca: Annotated[
        Path | None,
        typer.Option(
            "--ca", metavar="FILE", show_default=False, help="Certificates (PEM) to check the other end with."
        ),
    ] = None,
) -> None:
    """Name an existing database or API, with the credential to use there.

    The server keeps the credential and logs in with it; no office ever has it. Nothing is connected to yet:
    `tenure connection check NAME` tries it, `tenure connection grant NAME AGENT` lets an office use it."""
    made = session.tenure.connections.create(
        name, url, secret=_secret(url, password_stdin, auth), auth=auth, private=private, ca=_certificates(ca)
    )
    if session.json:
        output.print_json(made)
        return
    print(f"{made.name}  {made.url}")
    if made.auth == "none" and made.kind in ("mysql", "tcp"):
        print("Bytes are passed on as they are: the agent logs in by itself, with a credential that it has.")
    output.note(f"Does it work? tenure connection check {made.name}")


@command(connection_app, "list")
def list_connections(session: Session) -> None:
    """List the connections by name."""
    found = session.tenure.connections.list()
    if session.json:
        output.print_json({"connections": found})
        return
    if not found:
        output.note("There are no connections. Make one: tenure connection create crm postgres://user@host/database")
        return
    output.print_table(
        ("NAME", "IN AN OFFICE", "LEADS TO", "MADE"),
        [(one.name, one.address, output.printable(one.url), output.human_age(one.created_at)) for one in found],
    )


@command(connection_app, "show")
def show(session: Session, name: Name) -> None:
    """Show a connection and who may use it."""
    found = session.tenure.connections.get(name)
    if session.json:
        output.print_json(found)
        return
    output.print_fields(
        {
            "name": found.name,
            "leads to": output.printable(found.url),
            "in an office": found.address,
            "credential": "the agent's own" if found.auth == "none" else f"the server's ({found.auth})",
            "private": "yes" if found.private else "no",
            "granted to": ", ".join(found.agents) or "nobody",
        }
    )


@command(connection_app, "check")
def check(session: Session, name: Name) -> None:
    """Say whether a connection can be reached, and whether its credential works."""
    with output.waiting(f"trying {name}"):
        found = session.tenure.connections.check(name)
    if session.json:
        output.print_json(found)
    else:
        print(output.printable(found.detail))
        if found.hint:
            print(output.printable(found.hint))
    if not found.ok:
        raise typer.Exit(1)


@command(connection_app, "delete")
def delete(session: Session, name: Name) -> None:
    """Delete a connection with its credential and grants.

    What offices have open through it is broken at once."""
    session.tenure.connections.delete(name)
    _done(session, {"deleted": name}, f"The connection {name} is deleted.")


@command(connection_app, "grant")
def grant(session: Session, name: Name, agent: Agent) -> None:
    """Let an agent's office use a connection."""
    session.tenure.connections.grant(name, agent)
    found = session.tenure.connections.get(name)
    _done(session, {"granted": name, "agent": agent}, f"{agent} reaches {name} at {found.address}.")


@command(connection_app, "revoke")
def revoke(session: Session, name: Name, agent: Agent) -> None:
    """Let an agent's office use a connection no more.

    What it has open through it is broken at once."""
    session.tenure.connections.revoke(name, agent)
    _done(session, {"revoked": name, "agent": agent}, f"{agent} reaches {name} no more.")


def _done(session: Session, told: dict[str, str], text: str) -> None:
    if session.json:
        output.print_json(told)
    else:
        print(text)


def _secret(url: str, from_stdin: bool, auth: str | None) -> str | None:
    """Never of the command line, which others see. Asks where there is somebody to ask, and something to ask for."""
    if from_stdin:
        data = sys.stdin.buffer.read(SECRET_BYTES_MAX + 1)
        try:
            secret = data.decode().removesuffix("\n").removesuffix("\r")
        except UnicodeDecodeError:
            secret = ""
        if not secret or len(data) > SECRET_BYTES_MAX:
            raise InvalidArgument(
                "There is no password on stdin.", hint='printf %s "$PASSWORD" | tenure connection create …'
            )
        return secret
    if (auth or "@" in url) and output.is_terminal(sys.stdin):
        return getpass.getpass("Password or token: ") or None
    return None


def _certificates(file: Path | None) -> str | None:
    if file is None:
        return None
    try:
        with file.expanduser().open("rb") as opened:
            return opened.read(CA_BYTES_MAX + 1).decode("ascii", "replace")
    except OSError as error:
        raise InvalidArgument(f"Cannot read {file}: {error.strerror}.") from None


def register(app: typer.Typer) -> None:
    app.add_typer(connection_app, name="connection", rich_help_panel=OFFICE)
