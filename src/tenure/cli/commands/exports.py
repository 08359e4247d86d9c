"""tenure agent export | archive | exports | import | export-key"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tenure.cli import output
from tenure.cli.command import command
from tenure.cli.commands.agents import AgentName, agent_app
from tenure.cli.commands.files import progress_bar
from tenure.cli.session import Session
from tenure.errors import InvalidArgument
from tenure.names import check_name

if TYPE_CHECKING:
    from tenure import wire
    from tenure.export_keys import Key

_EVERY = re.compile(r"([0-9]+(?:\.[0-9]+)?)\s*(min|[mhd])\Z")
_SECONDS = {"m": 60.0, "min": 60.0, "h": 3600.0, "d": 86400.0}

KeyFile = Annotated[
    Path | None,
    typer.Option(
        "--key-file",
        metavar="FILE",
        show_default=False,
        help="Encrypt with the key in it, or open what was. Without: TENURE_EXPORT_KEY, if set.",
    ),
]


def interval_s(text: str) -> float:
    """Seconds of "30m", "1h", "1d". Raises `InvalidArgument`."""
    found = _EVERY.match(text.strip())
    if found is None:
        raise InvalidArgument(f"{text!r} is no interval.", hint="Write it like 30m, 1h or 1d.")
    return float(found[1]) * _SECONDS[found[2]]


def _key(session: Session, file: Path | None) -> Key | None:
    from tenure.export_keys import parse_key, read_key

    if file is not None:
        return read_key(file)
    return None if session.settings.export_key is None else parse_key(session.settings.export_key)


def export(
    session: Session,
    agent: AgentName,
    to: Annotated[
        str | None,
        typer.Option(
            "--to",
            metavar="PATH|s3://BUCKET/KEY",
            show_default=False,
            help="A file or directory here, or a place in S3, with the credentials of the server. Default: this directory.",
        ),
    ] = None,
    key_file: KeyFile = None,
    since: Annotated[
        str | None,
        typer.Option(
            "--since",
            metavar="EARLIER",
            show_default=False,
            help="Only what changed since an earlier export: its file, its address, or its id.",
        ),
    ] = None,
    every: Annotated[
        str | None,
        typer.Option(
            "--every",
            metavar="INTERVAL",
            show_default=False,
            help="Keep a copy in S3 from now on, made anew every 30m, 1h, 1d.",
        ),
    ] = None,
    full_every: Annotated[
        int, typer.Option(min=1, max=1000, help="With --every: so many make a chain, of which the first is whole.")
    ] = 24,
    keep: Annotated[
        int, typer.Option("--keep", min=1, max=1000, help="With --every: so many chains are kept, older ones deleted.")
    ] = 3,
    stop: Annotated[bool, typer.Option("--stop", help="End what --every began; what was made stays.")] = False,
) -> None:
    """Write an agent's whole office to one file, here or in S3.

    Files, database and objects as of one instant; the office goes on, or sleeps on. `tenure agent import` brings it back."""
    if stop:
        if to or since or every or key_file:
            raise InvalidArgument("--stop ends the schedule and takes nothing else.")
        session.tenure.agents(agent).stop_exporting()
        _print(session, {"stopped": agent}, f"No more copies of {agent} are made. Those that were made stay.")
        return
    key = _key(session, key_file)
    if every is not None:
        _keep_exporting(session, agent, to, interval_s(every), key, full_every, keep, since)
        return
    with progress_bar(f"export of {agent}", None) as progress:
        made = session.tenure.agents(agent).export(to, since=since, key=key, progress=progress)
    kind = f"changes since {made.base}" if made.base else "whole"
    _print(session, made, made.destination)
    output.note(f"{made.id}, {kind}, {output.human_bytes(made.size_bytes)}, {_encryption(made)}")


def archive(
    session: Session,
    agent: AgentName,
    to: Annotated[
        str | None,
        typer.Option(
            "--to",
            metavar="s3://BUCKET/PREFIX/",
            show_default=False,
            help="Where in S3, with the credentials of the server. Default: where its schedule of exports keeps copies.",
        ),
    ] = None,
    key_file: KeyFile = None,
    drop_snapshots: Annotated[
        bool,
        typer.Option(
            "--drop-snapshots",
            help="Delete its snapshots, too: nothing brings them back, and no run goes back to them.",
        ),
    ] = False,
) -> None:
    """Put an agent's office away in S3 and free its disk.

    Its processes end. Any use brings it back by itself, which takes as long as its archive takes to fetch; the archive stays in
    S3. The server keeps the key."""
    key = _key(session, key_file)
    office = session.tenure.agents(agent)
    with progress_bar(f"archive of {agent}", None) as progress:
        made = office.archive(to, key=key, drop_snapshots=drop_snapshots, progress=progress)
    _print(session, made, made.destination)
    output.note(
        f"{agent} is archived: {output.human_bytes(made.size_bytes)}, {_encryption(made)}. Any use brings it back."
    )
    if kept := office.snapshots.list():
        alone_bytes = [one.exclusive_bytes for one in kept if one.exclusive_bytes is not None]
        takes = f" and take {output.human_bytes(sum(alone_bytes))} and more" if alone_bytes else ""
        output.note(
            f"Its {len(kept)} snapshots stay here{takes}. To delete them: tenure snapshot delete {agent} SNAPSHOT"
        )


def _keep_exporting(
    session: Session,
    agent: str,
    to: str | None,
    every_s: float,
    key: Key | None,
    full_every: int,
    chains_kept: int,
    since: str | None,
) -> None:
    if since is not None:
        raise InvalidArgument("--every finds by itself what has changed.", hint="Leave --since out.")
    if to is None or not to.startswith("s3://"):
        raise InvalidArgument(
            "A copy that is to survive this machine is kept in S3; the server writes no files for clients.",
            hint="Say where: --to s3://BUCKET/PREFIX/. For files, call `tenure agent export` by cron.",
        )
    kept = session.tenure.agents(agent).keep_exporting(
        to, every_s=every_s, key=key, full_every=full_every, chains_kept=chains_kept
    )
    _print(
        session,
        kept,
        f"A copy of {agent} is kept in {kept.destination}, made every {output.human_duration(kept.every_s)}.",
    )
    if kept.key_id is None:
        output.note("It is not encrypted. With --key-file it is.")


def _encryption(made: wire.Export) -> str:
    return f"encrypted with the key {made.key_id}" if made.key_id else "not encrypted"


def _print(session: Session, value: object, text: str) -> None:
    if session.json:
        output.print_json(value)
    else:
        print(text)


def list_exports(session: Session, agent: AgentName) -> None:
    """List the exports of an agent, the oldest first, and the schedule, if there is one."""
    found = session.tenure.agents(agent).exports()
    if session.json:
        output.print_json(found)
        return
    if found.exports:
        output.print_table(
            ("ID", "STATE", "OF", "SIZE", "SINCE", "KEY", "WHERE"),
            [_row(one) for one in found.exports],
            right=("SIZE",),
        )
    else:
        output.note(f"There are no exports of {agent}. Make one: tenure agent export {agent}")
    for one in found.exports:
        if one.error:
            output.warn(f"{one.id}: {one.error}")
    if (kept := found.schedule) is not None:
        print(
            f"Every {output.human_duration(kept.every_s)} to {kept.destination}, next {kept.next_at:%Y-%m-%d %H:%M:%S} UTC."
        )
        if kept.failures:
            output.warn(f"{kept.failures} failed in a row: {kept.last_error}")


def _row(one: wire.Export) -> tuple[str, ...]:
    return (
        one.id,
        one.state,
        output.human_age(one.created_at),
        output.human_bytes(one.size_bytes),
        one.base or "whole",
        one.key_id or "-",
        one.destination or "a client",
    )


def import_agent(
    session: Session,
    source: Annotated[
        str, typer.Argument(metavar="FILE|s3://BUCKET/KEY", show_default=False, help="An export: a file, or in S3.")
    ],
    new: Annotated[
        str | None,
        typer.Argument(
            metavar="[NEW]", show_default=False, help="Name of the new agent. Default: the one that it had."
        ),
    ] = None,
    base: Annotated[
        list[str] | None,
        typer.Option(
            "--base",
            metavar="EARLIER",
            show_default=False,
            help="What the export continues, if it does not lie beside it. May be repeated.",
        ),
    ] = None,
    key_file: KeyFile = None,
) -> None:
    """Make a new agent of an export, on this machine or another.

    The same files, rows, objects, limits and egress, with an identity of its own. All of it, or nothing. Import only what you
    trust, or what you encrypted: a database's files are not only data."""
    if new is not None:
        check_name(new)
    from tenure.client.offices import bring, total_bytes

    sources: list[str | Path] = [*(base or []), source]
    key = _key(session, key_file)
    total = total_bytes(sources) if output.is_terminal(sys.stderr) else None
    with progress_bar("import", total) as progress:
        done = bring(session.tenure.transport, sources, new, key, progress)
    _print(session, done, f"{done.agent.name} is {done.agent.state}.")
    if not session.json:
        reach = ", ".join(done.agent.egress) or "nothing"
        output.note(
            f"It may reach {reach}. {done.runs} of its runs are known here. Try: tenure shell {done.agent.name}"
        )


def export_key(
    session: Session,
    file: Annotated[Path, typer.Argument(metavar="FILE", show_default=False, help="Where to write it.")],
    show: Annotated[bool, typer.Option("--show", help="Tell the id of the key in FILE instead.")] = False,
) -> None:
    """Make a key for encrypted exports.

    Keep a copy elsewhere: without it, nobody opens them."""
    from tenure.export_keys import new_key, read_key, write_key

    if show:
        key = read_key(file)
    else:
        key = new_key()
        write_key(file, key)
    _print(session, {"key_id": key.id, "file": str(file)}, f"{file} has the key {key.id}.")


def register(app: typer.Typer) -> None:
    """Into the group of agents."""
    del app
    for name, function in (
        ("export", export),
        ("archive", archive),
        ("exports", list_exports),
        ("import", import_agent),
        ("export-key", export_key),
    ):
        command(agent_app, name)(function)
