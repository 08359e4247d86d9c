"""The Typer app: every command, in the order of the help."""

from __future__ import annotations

from typing import Annotated

import typer

from tenure.cli.command import Home, Json, Outer
from tenure.cli.commands import agents, data, execute, files, inbox, lifecycle, runs, secure_shell, server

app = typer.Typer(
    name="tenure",
    help="Agents with an office each, and work that survives failure.",
    invoke_without_command=True,
    pretty_exceptions_enable=False,
    add_completion=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(wanted: bool) -> None:
    if wanted:
        from tenure import __version__

        print(f"tenure {__version__}")
        raise typer.Exit


@app.callback()
def main(
    ctx: typer.Context,
    json_: Json = False,
    home: Home = None,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    ctx.obj = Outer(json=json_, home=home)
    if ctx.invoked_subcommand is None:
        print(ctx.get_help())


for noun in (server, agents, lifecycle, execute, files, data, runs, inbox, secure_shell):
    noun.register(app)
