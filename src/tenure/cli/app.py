"""The Typer app: every command, in the order of the help."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from tenure.cli.command import Home, Json, Outer
from tenure.cli.commands import (
    agents,
    brain,
    buckets,
    connections,
    costs,
    data,
    databases,
    execute,
    exports,
    files,
    inbox,
    ingestion,
    keys,
    lifecycle,
    objects,
    previews,
    questions,
    runs,
    schedules,
    secure_shell,
    server,
    snapshots,
    sql,
    ssh_keys,
    webhooks,
)

ORDER = (
    *("up", "down", "status", "setup", "doctor", "logs", "demo"),
    *("agent", "sleep", "wake", "rest", "keep-awake", "rebuild", "snapshot", "fork", "brain"),
    *("exec", "shell", "cp", "sql", "data", "db", "connection", "objects", "bucket", "key"),
    *("ingest", "loads", "pipeline"),
    *("ssh", "ssh-proxy", "ssh-key", "ssh-config", "preview"),
    *("run", "runs", "questions", "answer", "costs", "schedule", "webhook", "inbox"),
)
"""Of the help. By itself Typer puts all groups after all commands."""


class InOrder(TyperGroup):
    def list_commands(self, ctx: Any) -> list[str]:
        return sorted(self.commands, key=ORDER.index)


app = typer.Typer(
    name="tenure",
    cls=InOrder,
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


for noun in (
    server,
    agents,
    brain,
    exports,
    lifecycle,
    snapshots,
    execute,
    files,
    sql,
    connections,
    data,
    objects,
    databases,
    buckets,
    keys,
    ingestion,
    runs,
    questions,
    costs,
    schedules,
    webhooks,
    inbox,
    secure_shell,
    ssh_keys,
    previews,
):
    noun.register(app)
