"""tenure snapshot create | list | diff | restore | delete · tenure fork"""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from tenure.cli import differences, output
from tenure.cli.command import AGENTS, command
from tenure.cli.commands.agents import AgentName
from tenure.cli.session import Session
from tenure.errors import InvalidArgument
from tenure.names import check_name

SnapshotName = Annotated[str, typer.Argument(metavar="SNAPSHOT", show_default=False, help="The snapshot's id or name.")]

snapshot_app = typer.Typer(help="Keep an office as it is, and put it back.")


@command(snapshot_app, "create")
def create(
    session: Session,
    agent: AgentName,
    name: Annotated[
        str | None, typer.Option("--name", metavar="NAME", show_default=False, help="What to call it besides its id.")
    ] = None,
) -> None:
    """Take a snapshot of an office.

    Files, database and objects as of one instant; the office goes on, or sleeps on."""
    taken = session.tenure.agents(agent).snapshots.create(name)
    if session.json:
        output.print_json(taken)
    else:
        print(taken.name or taken.id)
        output.note(f"Go back to it: tenure snapshot restore {agent} {taken.name or taken.id}")


@command(snapshot_app, "list")
def list_snapshots(session: Session, agent: AgentName) -> None:
    """List an agent's snapshots, the oldest first.

    FREES is what deleting one would free; what several share counts for none of them.
    Automatic ones (of every kind but manual) go when no rule wants them: the last 10 stay, the last of each hour for a
    day, and the last of each day for a week."""
    found = session.tenure.agents(agent).snapshots.list()
    if session.json:
        output.print_json({"snapshots": found})
        return
    if not found:
        output.note(f"There are no snapshots of {agent}. Take one: tenure snapshot create {agent}")
        return
    output.print_table(
        ("ID", "NAME", "KIND", "TAKEN", "FREES", "RUNS"),
        [
            (
                one.id,
                one.name or "-",
                one.kind,
                output.human_age(one.created_at),
                output.human_bytes(one.exclusive_bytes),
                " ".join(f"{run}@{seq}" for run, seq in one.runs.items()) or "-",
            )
            for one in found
        ],
        right=("FREES",),
    )


@command(snapshot_app, "diff")
def diff(
    session: Session,
    agent: AgentName,
    snapshot: SnapshotName,
    to: Annotated[
        str | None,
        typer.Argument(metavar="[TO]", show_default=False, help="Another snapshot; without, the office as it is now."),
    ] = None,
    tables: Annotated[bool, typer.Option("--tables/--no-tables", help="Compare the database's tables, too.")] = True,
) -> None:
    """Show what became of files, objects and rows since a snapshot.

    Files and objects are told by names, sizes and times, not by contents. Rows are told by primary key, or counted where a
    table has none; of each table some are shown, more with --json."""
    with output.waiting(f"Comparing {agent} with {snapshot} …"):
        found = session.tenure.agents(agent).snapshots.diff(snapshot, to, tables=tables)
    if session.json:
        output.print_json(found)
        return
    for line, style in differences.lines_of(found):
        print(output.paint(output.printable(line), style))
    if found.truncated:
        output.warn(f"Only the first {len(found.entries)} files and objects are shown.")
    if found.database is not None and found.database.problem is not None:
        output.warn(f"Not all of the database was compared. {found.database.problem}")
    output.note(differences.summary(found))


@command(snapshot_app, "restore")
def restore(session: Session, agent: AgentName, snapshot: SnapshotName) -> None:
    """Put an office back to a snapshot: files, database, objects.

    What is there now becomes a snapshot first, so this can be undone. What runs in the office ends."""
    done = session.tenure.agents(agent).snapshots.restore(snapshot)
    if session.json:
        output.print_json(done)
        return
    print(f"{agent} is as it was at {done.snapshot.created_at:%Y-%m-%d %H:%M:%S} ({done.agent.state}).")
    print(f"To undo: tenure snapshot restore {agent} {done.before.id}")


@command(snapshot_app, "delete")
def delete(
    session: Session,
    agent: AgentName,
    snapshot: SnapshotName,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
) -> int:
    """Delete a snapshot.

    Cannot be undone. Forks of it, and the office itself, stay as they are."""
    check_name(agent)
    if not yes and not _confirmed(session, agent, snapshot):
        output.note("Nothing was deleted.")
        return 1
    session.tenure.agents(agent).snapshots.delete(snapshot)
    if session.json:
        output.print_json({"deleted": snapshot})
    else:
        print(f"Snapshot {snapshot} of {agent} is deleted.")
    return 0


def _confirmed(session: Session, agent: str, snapshot: str) -> bool:
    if session.json or not output.is_terminal(sys.stdin):
        raise InvalidArgument(
            f"Deleting the snapshot {snapshot} cannot be undone, and nobody is there to confirm it.",
            hint=f"Say it on the command line: tenure snapshot delete {agent} {snapshot} --yes",
        )
    try:
        return typer.confirm(f"Delete the snapshot {snapshot} of {agent}?", err=True)
    except (typer.Abort, KeyboardInterrupt):
        print(file=sys.stderr)
        return False


def fork(
    session: Session,
    agent: AgentName,
    new: Annotated[str, typer.Argument(metavar="NEW", show_default=False, help="The name of the new agent.")],
    snapshot: Annotated[
        str | None,
        typer.Option(
            "--snapshot", metavar="SNAPSHOT", show_default=False, help="Fork this instead of what is there now."
        ),
    ] = None,
) -> None:
    """Make a new agent whose office is a copy of another's.

    The same files, rows and objects, limits and egress, with an identity of its own. Copy-on-write: takes room only as
    the two become different."""
    check_name(new)
    made = session.tenure.agents(agent).fork(new, snapshot=snapshot)
    if session.json:
        output.print_json(made.info)
    else:
        print(f"{made.name} is {made.state}.")


def register(app: typer.Typer) -> None:
    app.add_typer(snapshot_app, name="snapshot", rich_help_panel=AGENTS)
    command(app, "fork", rich_help_panel=AGENTS)(fork)
