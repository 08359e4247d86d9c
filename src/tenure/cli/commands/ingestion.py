"""tenure ingest | loads | pipeline"""

from __future__ import annotations

import sys
from collections.abc import Generator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tenure.cli import output
from tenure.cli.command import OFFICE, command
from tenure.cli.commands.exports import interval_s
from tenure.cli.exit_codes import RUN_PARKED
from tenure.cli.session import Session
from tenure.errors import InvalidArgument, NotFound

if TYPE_CHECKING:
    from tenure.client.ingestion import Loads
    from tenure.wire import ingestion as wire

TargetName = Annotated[
    str, typer.Argument(metavar="AGENT|DB", show_default=False, help="An agent, or a shared database.")
]
LoadId = Annotated[str, typer.Argument(metavar="LOAD", show_default=False, help="The id of a load: load_…")]
PipelineName = Annotated[str, typer.Argument(metavar="NAME", show_default=False, help="The pipeline's name.")]
Into = Annotated[
    str | None,
    typer.Option("--into", metavar="[SCHEMA.]TABLE", show_default=False, help="Default: a table called like the file."),
]
Mode = Annotated[
    str, typer.Option("--mode", metavar="append|replace|upsert", help="What becomes of the rows that are there.")
]
Key = Annotated[
    str | None,
    typer.Option("--key", metavar="COL,COL", show_default=False, help="For upsert: the columns that tell rows apart."),
]
Schema = Annotated[
    str,
    typer.Option(
        "--schema",
        metavar="ask|allow|strict",
        help="When the table does not fit: ask before it is changed, change it (columns are added and widened), fail.",
    ),
]
Format = Annotated[
    str | None,
    typer.Option(
        "--format",
        metavar="FORMAT",
        show_default=False,
        help="csv, tsv, json, ndjson, parquet or excel. Default: found out.",
    ),
]
Delimiter = Annotated[
    str | None,
    typer.Option("--delimiter", metavar="CHAR", show_default=False, help="Default: found out. \\t is a tab."),
]
Quote = Annotated[str | None, typer.Option("--quote", metavar="CHAR", show_default=False, help="Default: found out.")]
Encoding = Annotated[
    str | None, typer.Option("--encoding", metavar="NAME", show_default=False, help="Default: found out.")
]
Header = Annotated[
    bool | None,
    typer.Option(
        "--header/--no-header", show_default=False, help="Whether the first row has names. Default: found out."
    ),
]
Sheet = Annotated[
    str | None,
    typer.Option("--sheet", metavar="NAME", show_default=False, help="Of a spreadsheet. Default: the first."),
]

loads_app = typer.Typer(help="Files on their way into tables, and those that came.")
pipeline_app = typer.Typer(help="Files that are loaded again and again: by time, and as they arrive.")


def _options(
    into: str | None,
    mode: str,
    key: str | None,
    schema: str,
    format_: str | None,
    delimiter: str | None,
    quote: str | None,
    encoding: str | None,
    header: bool | None,
    sheet: str | None,
) -> dict[str, Any]:
    for given, name, allowed in (
        (mode, "--mode", ("append", "replace", "upsert")),
        (schema, "--schema", ("ask", "allow", "strict")),
        (format_, "--format", ("csv", "tsv", "json", "ndjson", "parquet", "excel")),
    ):
        if given is not None and given not in allowed:
            raise InvalidArgument(f"{name} {given}: there is no such thing.", hint=f"One of: {', '.join(allowed)}.")
    return {
        "into": into,
        "mode": mode,
        "key": key,
        "schema_policy": schema,
        "format": format_,
        "delimiter": delimiter,
        "quote": quote,
        "encoding": encoding,
        "header": header,
        "sheet": sheet,
    }


def _agent_or_database(session: Session, name: str) -> tuple[str | None, str | None]:
    """(agent, database): an agent of that name, else a shared database."""
    try:
        session.tenure.agents.get(name)
    except NotFound:
        return None, name
    return name, None


def _loads(session: Session, name: str) -> Loads:
    from tenure.client.ingestion import Loads

    agent, database = _agent_or_database(session, name)
    return Loads(session.tenure.transport, agent, database)


def ingest(
    session: Session,
    target: TargetName,
    source: Annotated[
        str,
        typer.Argument(
            metavar="FILE|URL|s3://…|office:PATH",
            show_default=False,
            help="A file here, or an address that the server reads: as the agent's office may.",
        ),
    ],
    into: Into = None,
    mode: Mode = "append",
    key: Key = None,
    schema: Schema = "ask",
    format_: Format = None,
    delimiter: Delimiter = None,
    quote: Quote = None,
    encoding: Encoding = None,
    header: Header = None,
    sheet: Sheet = None,
    again: Annotated[bool, typer.Option("--again", help="Also when the same content was loaded before.")] = False,
    detach: Annotated[bool, typer.Option("--detach", help="Do not wait: print the load's id.")] = False,
) -> None:
    """Load a file into a table: all of it or nothing.

    CSV, TSV, JSON, NDJSON, Parquet and Excel, packed by gzip, zstd, bz2, xz or zip. Types, delimiter, encoding and header are
    found out; rows that do not fit are kept in TABLE_rejects. The same content is loaded into the same table once."""
    options = _options(into, mode, key, schema, format_, delimiter, quote, encoding, header, sheet)
    loads = _loads(session, target)
    with _bar(source) as bar:
        load = loads.begin(source, sent=bar.sent, again=again, **options)
        if not detach:
            load = loads.wait(load, progress=bar.looked)
    if load.state == "waiting" and not session.json and output.is_terminal(sys.stdin):
        load = _ask(loads, load)
    _told(session, load)


class _Bar:
    """A bar for what is sent, then for what is read."""

    def __init__(self, bars: Any, total: int | None) -> None:
        self._bars, self._total = bars, total
        self._task = None if bars is None else bars.add_task("sending", total=total)
        self._reading = False

    def sent(self, count: int) -> None:
        if self._bars is not None:
            self._bars.advance(self._task, count)

    def looked(self, load: wire.Load) -> None:
        if self._bars is None:
            return
        words = "loading" if load.state in ("running", "queued") else load.state
        total = load.size_bytes or self._total
        self._bars.update(self._task, description=words, total=total, completed=load.read_bytes)


@contextmanager
def _bar(source: str) -> Generator[_Bar]:
    if not output.is_terminal(sys.stderr):
        yield _Bar(None, None)
        return
    from pathlib import Path

    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

    path = Path(source)
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bars:
        yield _Bar(bars, path.stat().st_size if path.is_file() else None)


def _ask(loads: Loads, load: wire.Load) -> wire.Load:
    print(output.paint(output.printable(load.question or ""), "yellow", sys.stderr), file=sys.stderr)
    while True:
        print("yes or no: ", end="", file=sys.stderr, flush=True)
        said = sys.stdin.readline().strip().lower()
        if said in ("y", "yes", "n", "no", ""):
            break
    if said not in ("y", "yes"):
        return loads.answer(load.id, allow=False)
    return loads.wait(loads.answer(load.id, allow=True))


def _told(session: Session, load: wire.Load) -> None:
    if session.json:
        output.print_json(load)
    else:
        print(output.printable(_line(load)))
        for change in load.changes:
            output.note(f"changed: {output.printable(change)}")
        if load.rows_rejected:
            output.warn(f"{load.rows_rejected} rows were rejected: see the table {load.rejects}")
    if load.state == "waiting":
        if not session.json:
            output.warn(output.printable(load.question or ""))
            output.note(f"Answer with: tenure loads answer {load.id} allow|reject")
        raise typer.Exit(RUN_PARKED)


def _line(load: wire.Load) -> str:
    if load.state == "done" and load.repeats:
        return f"{load.id}: loaded already as {load.repeats} ({load.rows_loaded} rows in {load.into}); --again loads it again"
    if load.state == "done":
        return f"{load.id}: {load.rows_loaded} rows into {load.into}"
    return f"{load.id} into {load.into} is {load.state}"


# --- loads --------------------------------------------------------------------------------------------------------------
@command(loads_app, "list")
def list_loads(
    session: Session,
    target: Annotated[
        str | None, typer.Argument(metavar="[AGENT|DB]", show_default=False, help="Only those into its database.")
    ] = None,
    limit: Annotated[int, typer.Option("--limit", min=1, max=1000, help="At most so many.")] = 50,
) -> None:
    """List loads, the newest first."""
    found = (session.tenure.loads if target is None else _loads(session, target)).list(limit)
    _table(session, found)


def _table(session: Session, found: list[wire.Load]) -> None:
    if session.json:
        output.print_json(found)
        return
    if not found:
        output.note("There are no loads.")
        return
    output.print_table(
        ("LOAD", "STATE", "TARGET", "TABLE", "ROWS", "REJECTED", "SIZE", "OF", "SOURCE"),
        [
            (
                one.id,
                one.state,
                one.agent or one.database or "-",
                output.printable(one.into),
                "-" if one.rows_loaded is None else str(one.rows_loaded),
                "-" if one.rows_rejected is None else str(one.rows_rejected),
                output.human_bytes(one.size_bytes),
                output.human_age(one.created_at),
                output.printable(one.source),
            )
            for one in found
        ],
        right=("ROWS", "REJECTED", "SIZE"),
    )


@command(loads_app, "show")
def show_load(session: Session, load_id: LoadId) -> None:
    """Show a load: how it goes, what it found, what it asks."""
    load = session.tenure.loads.get(load_id)
    if session.json:
        output.print_json(load)
        return
    print(output.printable(_line(load)))
    print(f"  from {output.printable(load.source)}, {output.human_bytes(load.size_bytes)}")
    for column in load.columns or ():
        print(f"  {output.printable(column.name)}  {column.type}")
    for change in load.changes:
        print(f"  changed: {output.printable(change)}")
    if load.rows_rejected:
        print(f"  {load.rows_rejected} rows were rejected: see the table {load.rejects}")
    if load.error:
        print(f"  {output.printable(str(load.error.get('message')))}")
    if load.question:
        print(f"  {output.paint(output.printable(load.question), 'yellow')}")
        output.note(f"Answer with: tenure loads answer {load.id} allow|reject")


@command(loads_app, "answer")
def answer_load(
    session: Session,
    load_id: LoadId,
    answer: Annotated[str, typer.Argument(metavar="allow|reject", show_default=False, help="The changes it asks for.")],
) -> None:
    """Allow the changes of a table that a load asks for, and wait for it; or reject them, and the load with them."""
    if answer not in ("allow", "reject"):
        raise InvalidArgument(f"{answer!r} is no answer.", hint="Say allow or reject.")
    loads = session.tenure.loads
    load = loads.answer(load_id, allow=answer == "allow")
    _told(session, loads.wait(load) if answer == "allow" else load)


@command(loads_app, "cancel")
def cancel_load(session: Session, load_id: LoadId) -> None:
    """End a load that is not over; nothing of it is in its table then."""
    _told(session, session.tenure.loads.cancel(load_id))


# --- pipelines ----------------------------------------------------------------------------------------------------------
@command(pipeline_app, "create")
def create_pipeline(
    session: Session,
    name: PipelineName,
    target: TargetName,
    source: Annotated[
        str,
        typer.Option(
            "--from",
            metavar="URL|s3://BUCKET/PREFIX/",
            show_default=False,
            help='Where from. With "/" at the end: all objects below it.',
        ),
    ],
    every: Annotated[
        str | None, typer.Option("--every", metavar="INTERVAL", show_default=False, help="Like 30m, 1h, 1d.")
    ] = None,
    cron: Annotated[
        str | None, typer.Option("--cron", metavar="EXPRESSION", show_default=False, help="Like '0 3 * * 1-5'.")
    ] = None,
    tz: Annotated[str, typer.Option("--tz", metavar="ZONE", help="Time zone of --cron.")] = "UTC",
    on_arrival: Annotated[bool, typer.Option("--on-arrival", help="Whenever an object arrives.")] = False,
    into: Into = None,
    mode: Mode = "append",
    key: Key = None,
    schema: Schema = "ask",
    format_: Format = None,
    delimiter: Delimiter = None,
    quote: Quote = None,
    encoding: Encoding = None,
    header: Header = None,
    sheet: Sheet = None,
) -> None:
    """Load what is at an address now, and again by its times. Each content is loaded once."""
    options = _options(into, mode, key, schema, format_, delimiter, quote, encoding, header, sheet)
    agent, database = _agent_or_database(session, target)
    made = session.tenure.pipelines.create(
        name,
        source,
        agent=agent,
        database=database,
        every_s=None if every is None else round(interval_s(every)),
        cron=cron,
        tz=tz,
        on_arrival=on_arrival,
        **options,
    )
    _print(session, made, f"{made.name} loads {output.printable(made.source)} {_when(made)}.")


def _when(one: wire.Pipeline) -> str:
    found = [f"every {output.human_duration(one.every_s)}"] if one.every_s else []
    found += [f"at {one.cron} ({one.tz})"] if one.cron else []
    found += ["as objects arrive"] if one.on_arrival else []
    return " and ".join(found) or "when it is told to"


@command(pipeline_app, "list")
def list_pipelines(session: Session) -> None:
    """List pipelines."""
    found = session.tenure.pipelines.list()
    if session.json:
        output.print_json(found)
        return
    if not found:
        output.note("There are no pipelines. Make one: tenure pipeline create")
        return
    output.print_table(
        ("NAME", "TARGET", "FROM", "WHEN", "LAST", "STATE"),
        [
            (
                one.name,
                one.agent or one.database or "-",
                output.printable(one.source),
                _when(one),
                "-" if one.last_at is None else output.human_age(one.last_at),
                "paused" if one.paused else "failing" if one.failures else "active",
            )
            for one in found
        ],
    )
    for one in found:
        if one.last_error:
            output.warn(f"{one.name}: {output.printable(one.last_error)}")


@command(pipeline_app, "show")
def show_pipeline(
    session: Session,
    name: PipelineName,
    limit: Annotated[int, typer.Option("--limit", min=1, max=1000, help="At most so many of its loads.")] = 20,
) -> None:
    """Show a pipeline and its loads, the newest first."""
    one, loads = session.tenure.pipelines.get(name), session.tenure.pipelines.loads(name, limit)
    if session.json:
        output.print_json({"pipeline": one, "loads": loads})
        return
    print(f"{one.name} loads {output.printable(one.source)} {_when(one)}{', paused' if one.paused else ''}.")
    if one.last_error:
        output.warn(output.printable(one.last_error))
    _table(session, loads)


@command(pipeline_app, "pause")
def pause_pipeline(session: Session, name: PipelineName) -> None:
    """Have a pipeline run no more until it is resumed."""
    _print(session, session.tenure.pipelines.pause(name), f"{name} is paused.")


@command(pipeline_app, "resume")
def resume_pipeline(session: Session, name: PipelineName) -> None:
    """Have a paused pipeline run again: what came meanwhile is loaded."""
    _print(session, session.tenure.pipelines.resume(name), f"{name} is active.")


@command(pipeline_app, "run")
def run_pipeline(session: Session, name: PipelineName) -> None:
    """Load what is new now."""
    _print(session, session.tenure.pipelines.run(name), f"{name} ran. Its loads: tenure pipeline show {name}")


@command(pipeline_app, "delete")
def delete_pipeline(session: Session, name: PipelineName) -> None:
    """Delete a pipeline. What it loaded stays."""
    session.tenure.pipelines.delete(name)
    _print(session, {"deleted": name}, f"{name} is deleted.")


def _print(session: Session, value: object, text: str) -> None:
    if session.json:
        output.print_json(value)
    else:
        print(text)


def register(app: typer.Typer) -> None:
    command(app, "ingest", rich_help_panel=OFFICE)(ingest)
    app.add_typer(loads_app, name="loads", rich_help_panel=OFFICE)
    app.add_typer(pipeline_app, name="pipeline", rich_help_panel=OFFICE)
