"""tenure db: shared databases, who may do what with them, and their past."""

from __future__ import annotations

import sys
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Annotated

import typer

from tenure.cli import output
from tenure.cli.command import OFFICE, command
from tenure.cli.commands.exports import interval_s
from tenure.cli.session import Session
from tenure.errors import InvalidArgument
from tenure.names import check_name

if TYPE_CHECKING:
    from tenure.wire import databases as wire

db_app = typer.Typer(help="Databases that agents share, by grants.")

DatabaseName = Annotated[str, typer.Argument(metavar="DATABASE", show_default=False, help="The database's name.")]
AgentName = Annotated[str, typer.Argument(metavar="AGENT", show_default=False, help="The agent's name.")]
SnapshotName = Annotated[str, typer.Argument(metavar="SNAPSHOT", show_default=False, help="The snapshot's id or name.")]
DiskGb = Annotated[
    float | None, typer.Option("--disk-gb", metavar="N", show_default=False, help="Disk of the whole database.")
]
Connections = Annotated[
    int | None,
    typer.Option("--connections", metavar="N", show_default=False, help="Connections that one agent may hold."),
]
StatementTimeout = Annotated[
    float | None,
    typer.Option(
        "--statement-timeout", metavar="S", show_default=False, help="Seconds that an agent's statement may take."
    ),
]
TempGb = Annotated[
    float | None,
    typer.Option("--temp-gb", metavar="N", show_default=False, help="Temporary files of one connection of an agent's."),
]


# --- life ---------------------------------------------------------------------------------------------------------------
@command(db_app, "create")
def create(
    session: Session,
    database: DatabaseName,
    disk_gb: DiskGb = None,
    connections: Connections = None,
    statement_timeout: StatementTimeout = None,
    temp_gb: TempGb = None,
) -> None:
    """Make an empty shared database.

    No office can reach it until it is granted. Limits that are not said: 10 GB of disk; for each agent 5 connections, 60 s for a
    statement, 1 GB of temporary files."""
    made = session.tenure.databases.create(
        database, disk_gb=disk_gb, connections=connections, statement_timeout_s=statement_timeout, temp_gb=temp_gb
    )
    if session.json:
        output.print_json(made.info)
        return
    print(f"{made.name} is there.")
    output.note(f"Let an agent in: tenure db grant {made.name} AGENT read")


@command(db_app, "list")
def list_databases(session: Session) -> None:
    """List the shared databases."""
    found = [one.info for one in session.tenure.databases.list() if one.info is not None]
    if session.json:
        output.print_json({"databases": found})
        return
    if not found:
        output.note("There are no shared databases. Make one: tenure db create sales")
        return
    output.print_table(
        ("NAME", "STATE", "HOST", "CONNECTIONS", "BACKED UP UNTIL", "CREATED"),
        [
            (one.name, one.state, one.host, str(one.connections), _until(one.backup), output.human_age(one.created_at))
            for one in found
        ],
        right=("CONNECTIONS",),
    )


@command(db_app, "show")
def show(session: Session, database: DatabaseName) -> None:
    """Show a shared database."""
    one = session.tenure.databases(database).show()
    if session.json:
        output.print_json(one)
        return
    _print(one)


def _print(one: wire.SharedDatabase) -> None:
    limits = one.limits
    fields = {
        "Name": one.name,
        "State": one.state,
        "In offices": f"{one.host}:{one.port}",
        "Size": f"{output.human_bytes(one.size_bytes)} of {limits.disk_gb:g} GB",
        "For each agent": f"{limits.connections} connections, {limits.statement_timeout_s:g} s for a statement, "
        f"{limits.temp_gb:g} GB of temporary files",
        "Connections": str(one.connections),
        "Created": f"{one.created_at:%Y-%m-%d %H:%M:%S}" + (f" from {one.origin}" if one.origin else ""),
    }
    if one.backup is not None:
        fields["Backup"] = f"{one.backup.to}, until {_until(one.backup)}"
        if one.backup.problem:
            fields["Problem"] = output.printable(one.backup.problem)
    output.print_fields(fields)


def _until(backup: wire.SharedBackup | None) -> str:
    if backup is None:
        return "-"
    return f"{backup.archived_until:%Y-%m-%d %H:%M:%S}" if backup.archived_until else "not yet"


@command(db_app, "delete")
def delete(
    session: Session,
    database: DatabaseName,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
) -> int:
    """Delete a shared database with its snapshots and grants.

    Cannot be undone. What was sent to where its backups are stays there."""
    check_name(database, "database")
    if not yes and not _confirmed(
        session, f"Delete the shared database {database}?", f"tenure db delete {database} --yes"
    ):
        output.note("Nothing was deleted.")
        return 1
    session.tenure.databases(database).delete()
    if session.json:
        output.print_json({"deleted": database})
    else:
        print(f"{database} is deleted.")
    return 0


def _confirmed(session: Session, question: str, said: str) -> bool:
    if session.json or not output.is_terminal(sys.stdin):
        raise InvalidArgument(
            "This cannot be undone, and nobody is there to confirm it.", hint=f"Say it on the command line: {said}"
        )
    try:
        return typer.confirm(question, err=True)
    except (typer.Abort, KeyboardInterrupt):
        print(file=sys.stderr)
        return False


@command(db_app, "sleep")
def sleep(session: Session, database: DatabaseName) -> None:
    """Stop a shared database.

    Whoever is connected is disconnected; its next use wakes it."""
    _print_state(session, session.tenure.databases(database).sleep())


@command(db_app, "wake")
def wake(session: Session, database: DatabaseName) -> None:
    """Start a shared database. Its next use does that as well."""
    _print_state(session, session.tenure.databases(database).wake())


def _print_state(session: Session, one: wire.SharedDatabase) -> None:
    if session.json:
        output.print_json(one)
    else:
        print(f"{one.name} is {one.state}.")


@command(db_app, "limits")
def limits(
    session: Session,
    database: DatabaseName,
    disk_gb: DiskGb = None,
    connections: Connections = None,
    statement_timeout: StatementTimeout = None,
    temp_gb: TempGb = None,
) -> None:
    """Show or set a shared database's limits.

    What is not said stays. They hold for agents, whatever a session sets; agents that are connected are disconnected."""
    one = session.tenure.databases(database)
    if (disk_gb, connections, statement_timeout, temp_gb) == (None, None, None, None):
        found = one.show()
    else:
        found = one.limit(
            disk_gb=disk_gb, connections=connections, statement_timeout_s=statement_timeout, temp_gb=temp_gb
        )
    if session.json:
        output.print_json(found.limits)
        return
    output.print_fields(
        {
            "Disk": f"{found.limits.disk_gb:g} GB",
            "Connections": f"{found.limits.connections} of one agent",
            "Statement": f"{found.limits.statement_timeout_s:g} s",
            "Temporary files": f"{found.limits.temp_gb:g} GB of one connection",
        }
    )


# --- grants -------------------------------------------------------------------------------------------------------------
@command(db_app, "grant")
def grant(
    session: Session,
    database: DatabaseName,
    agent: AgentName,
    level: Annotated[str, typer.Argument(metavar="LEVEL", show_default=False, help="read or write.")],
    tables: Annotated[
        list[str] | None,
        typer.Option(
            "--table",
            metavar="TABLE[:CONDITION]",
            show_default=False,
            help="Only this table, or only its rows for which an SQL condition is true. May be given again.",
        ),
    ] = None,
    expires: Annotated[
        str | None,
        typer.Option("--for", metavar="TIME", show_default=False, help="Ends by itself after so long: 30m, 8h, 7d."),
    ] = None,
) -> None:
    """Let an agent's office use a shared database.

    Inside it is the host DATABASE.db: `psql -h DATABASE.db` needs no password. A new grant takes the place of an earlier one."""
    if level not in ("read", "write"):
        raise InvalidArgument(f"{level!r} is no level.", hint="One of: read, write.")
    scope = None if not tables else dict(_table(text) for text in tables)
    expires_at = None if expires is None else datetime.now(UTC) + timedelta(seconds=interval_s(expires))
    made = session.tenure.databases(database).grant(
        agent, "read" if level == "read" else "write", tables=scope, expires_at=expires_at
    )
    if session.json:
        output.print_json(made)
        return
    print(f"{agent} may {level} {database}{'' if scope is None else ' in part'}.")
    output.note(f"In its office: psql -h {database}.db")


def _table(text: str) -> tuple[str, str | None]:
    name, colon, rows = text.partition(":")
    if not name or (colon and not rows.strip()):
        raise InvalidArgument(f"{text!r} names no table.", hint="Write orders, or \"orders:region = 'north'\".")
    return name.strip(), rows.strip() if colon else None


@command(db_app, "revoke")
def revoke(session: Session, database: DatabaseName, agent: AgentName) -> None:
    """End what an agent was granted.

    Its connections end at once. What it made in its own schema stays, as yours."""
    session.tenure.databases(database).revoke(agent)
    if session.json:
        output.print_json({"revoked": agent})
    else:
        print(f"{agent} has no access to {database} any more.")


@command(db_app, "grants")
def grants(session: Session, database: DatabaseName) -> None:
    """List who may do what with a shared database."""
    found = session.tenure.databases(database).grants()
    if session.json:
        output.print_json({"grants": found})
        return
    if not found:
        output.note(f"Nobody was granted {database}. Let an agent in: tenure db grant {database} AGENT read")
        return
    output.print_table(
        ("AGENT", "LEVEL", "TABLES", "ENDS", "SINCE"),
        [
            (
                one.agent,
                one.level,
                "all" if one.tables is None else output.printable(", ".join(_shown(one))),
                "-" if one.expires_at is None else f"{one.expires_at:%Y-%m-%d %H:%M}",
                output.human_age(one.created_at),
            )
            for one in found
        ],
    )


def _shown(grant: wire.DatabaseGrant) -> list[str]:
    return [
        name if scope.rows is None else f"{name} where {scope.rows}" for name, scope in (grant.tables or {}).items()
    ]


# --- its past -----------------------------------------------------------------------------------------------------------
@command(db_app, "snapshot")
def snapshot(
    session: Session,
    database: DatabaseName,
    name: Annotated[
        str | None, typer.Option("--name", metavar="NAME", show_default=False, help="What to call it besides its id.")
    ] = None,
) -> None:
    """Take a snapshot of a shared database, as of one instant."""
    taken = session.tenure.databases(database).snapshot(name)
    if session.json:
        output.print_json(taken)
        return
    print(taken.name or taken.id)
    output.note(f"Go back to it: tenure db restore {database} {taken.name or taken.id}")


@command(db_app, "snapshots")
def snapshots(session: Session, database: DatabaseName) -> None:
    """List a shared database's snapshots, the oldest first."""
    found = session.tenure.databases(database).snapshots()
    if session.json:
        output.print_json({"snapshots": found})
        return
    if not found:
        output.note(f"There are no snapshots of {database}. Take one: tenure db snapshot {database}")
        return
    output.print_table(
        ("ID", "NAME", "KIND", "TAKEN", "FREES"),
        [
            (
                one.id,
                one.name or "-",
                one.kind,
                output.human_age(one.created_at),
                output.human_bytes(one.exclusive_bytes),
            )
            for one in found
        ],
        right=("FREES",),
    )


@command(db_app, "delete-snapshot")
def delete_snapshot(session: Session, database: DatabaseName, snapshot: SnapshotName) -> None:
    """Delete a snapshot of a shared database. Cannot be undone; forks of it stay."""
    session.tenure.databases(database).delete_snapshot(snapshot)
    if session.json:
        output.print_json({"deleted": snapshot})
    else:
        print(f"Snapshot {snapshot} of {database} is deleted.")


@command(db_app, "restore")
def restore(
    session: Session,
    database: DatabaseName,
    snapshot: Annotated[
        str | None, typer.Argument(metavar="[SNAPSHOT]", show_default=False, help="Put it back to this snapshot.")
    ] = None,
    to: Annotated[
        str | None,
        typer.Option("--to", metavar="MOMENT", show_default=False, help="As it was then: 2026-11-22T10:00:00Z."),
    ] = None,
    new: Annotated[
        str | None, typer.Option("--as", metavar="NEW", show_default=False, help="The name of the new database.")
    ] = None,
    source: Annotated[
        str | None,
        typer.Option("--from", metavar="PLACE", show_default=False, help="Where its backups are, if it is gone."),
    ] = None,
) -> None:
    """Put a shared database back to a snapshot, or make a new one as it was at a moment.

    To a snapshot: what is there becomes a snapshot first, so this can be undone. To a moment: from its backups, as the new
    database that --as names; the old one is not touched. Grants stay as they are; the new one is granted to nobody."""
    if (snapshot is None) == (to is None) or (to is None) != (new is None) or (source is not None and to is None):
        raise InvalidArgument(
            "Say a snapshot, or a moment and a name.",
            hint=f"tenure db restore {database} SNAPSHOT, or tenure db restore {database} --to 2026-11-22T10:00:00Z --as NEW",
        )
    if to is not None and new is not None:
        with output.waiting(f"Restoring {database} …"):
            made = session.tenure.databases.restore(database, _moment(to), new, source=source)
        if session.json:
            output.print_json(made.info)
        else:
            print(f"{made.name} is {database} as it was at {to}.")
        return
    done = session.tenure.databases(database).restore(snapshot or "")
    if session.json:
        output.print_json(done)
        return
    print(f"{database} is as it was at {done.snapshot.created_at:%Y-%m-%d %H:%M:%S}.")
    print(f"To undo: tenure db restore {database} {done.before.id}")


def _moment(text: str) -> datetime:
    """Without a time zone it is UTC."""
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        raise InvalidArgument(f"{text!r} is no moment.", hint="Write it like 2026-11-22T10:00:00Z.") from None
    return found if found.tzinfo is not None else found.replace(tzinfo=UTC)


@command(db_app, "fork")
def fork(
    session: Session,
    database: DatabaseName,
    new: Annotated[str, typer.Argument(metavar="NEW", show_default=False, help="The name of the new database.")],
    snapshot: Annotated[
        str | None,
        typer.Option(
            "--snapshot", metavar="SNAPSHOT", show_default=False, help="Fork this instead of what is there now."
        ),
    ] = None,
) -> None:
    """Make a new shared database that is a clone of another. Nobody has a grant to it."""
    made = session.tenure.databases(database).fork(new, snapshot=snapshot)
    if session.json:
        output.print_json(made.info)
    else:
        print(f"{made.name} is there.")


@command(db_app, "backup")
def backup(
    session: Session,
    database: DatabaseName,
    to: Annotated[
        str | None,
        typer.Option(
            "--to",
            metavar="PLACE",
            show_default=False,
            help="Begin to back it up continuously, to s3://BUCKET/PREFIX/ or a directory of the server's machine.",
        ),
    ] = None,
    every: Annotated[str, typer.Option("--every", metavar="TIME", help="Between two bases: 1h, 1d.")] = "1d",
    off: Annotated[bool, typer.Option("--off", help="Back it up no more. What was sent stays.")] = False,
) -> None:
    """Back up a shared database.

    With --to: from now on, continuously; it can be restored to any moment since. Without: wait until all that was committed
    until now can be restored."""
    if to is not None and off:
        raise InvalidArgument("--to and --off exclude each other.")
    one = session.tenure.databases(database)
    if off:
        one.back_up_no_more()
        if session.json:
            output.print_json({"stopped": database})
        else:
            print(f"{database} is not backed up any more.")
        return
    if to is not None:
        found = one.back_up(to, every_s=interval_s(every))
    else:
        with output.waiting(f"Backing up {database} …"):
            found = one.back_up_now()
    if session.json:
        output.print_json(found)
    elif to is not None:
        print(f"{database} is backed up to {to}. The first base is taken now.")
    else:
        print(f"{database} can be restored to {_until(found.backup)} UTC.")


def register(app: typer.Typer) -> None:
    app.add_typer(db_app, name="db", rich_help_panel=OFFICE)
