"""tenure preview: what an office serves on one of its ports, in a browser."""

from __future__ import annotations

from typing import Annotated

import typer

from tenure.cli import output
from tenure.cli.command import OFFICE, command
from tenure.cli.commands.agents import AgentName
from tenure.cli.session import Session
from tenure.errors import InvalidArgument
from tenure.names import check_name


def preview(
    session: Session,
    agent: AgentName,
    port: Annotated[
        int,
        typer.Argument(
            metavar="PORT",
            min=1,
            max=65535,
            show_default=False,
            help="Where a server of the office listens (127.0.0.1).",
        ),
    ],
    path: Annotated[str, typer.Option("--path", metavar="PATH", help="The page to begin with.")] = "/",
    open_: Annotated[bool, typer.Option("--open", help="Open it in this machine's browser.")] = False,
) -> None:
    """Print a link to what an office serves on a port.

    The link is good once, for two minutes; then the browser has a cookie for this port of this office alone, good for
    eight hours. Any request wakes the office."""
    if not path.startswith("/"):
        raise InvalidArgument(f"{path!r} is no path: it has to begin with '/'.")
    made = session.tenure.agents(check_name(agent)).preview(port, path)
    if session.json:
        output.print_json(made)
    else:
        print(made.url)
    if open_:
        import webbrowser

        if not webbrowser.open(made.url):
            output.warn("There is no browser on this machine: open the link where there is one.")


def register(app: typer.Typer) -> None:
    command(app, "preview", rich_help_panel=OFFICE)(preview)
