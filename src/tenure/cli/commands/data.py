"""tenure data describe | sample | profile | results … | search …"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tenure.cli import output
from tenure.cli.command import OFFICE, command
from tenure.cli.session import Session
from tenure.cli.target import Target, asked

if TYPE_CHECKING:
    from tenure import wire
    from tenure.client.data import Data
    from tenure.wire import data as shapes

BAR = 24
"""Characters of the longest bar."""
BLOCKS = " ▁▂▃▄▅▆▇█"

data_app = typer.Typer(help="Look into a database: its schema, samples, profiles; results by name; search.")
results_app = typer.Typer(help="Results of queries, kept by name.")
search_app = typer.Typer(help="Search text columns, by meaning and by words.")
data_app.add_typer(results_app, name="results")
data_app.add_typer(search_app, name="search")

TableName = Annotated[
    str, typer.Argument(metavar="TABLE", show_default=False, help="Its name as it is, without quotes; or SCHEMA.TABLE.")
]
Where = Annotated[
    str | None, typer.Option("--where", metavar="CONDITION", help="Only rows for which this SQL condition holds.")
]
Columns = Annotated[
    list[str] | None, typer.Option("--column", "-c", metavar="NAME", help="Only this one. May be repeated.")
]
ResultName = Annotated[str, typer.Argument(metavar="NAME", show_default=False, help="Of the result: a-z, 0-9, '_'.")]
IndexName = Annotated[str, typer.Argument(metavar="INDEX", show_default=False, help="Of the search index.")]


def _data(session: Session, of: str) -> Data:
    from tenure.client.data import Data

    return Data(session.tenure.transport, of)


# --- look ----------------------------------------------------------------------------------------------------------------
@command(data_app, "describe")
def describe(
    session: Session,
    target: Target,
    table: Annotated[
        str | None, typer.Argument(metavar="[TABLE]", show_default=False, help="Only this one, whole.")
    ] = None,
    like: Annotated[
        str | None, typer.Option("--like", metavar="TEXT", help="Only those with this in their name.")
    ] = None,
) -> None:
    """Show what tables there are, or all of one: columns, types, keys, indexes, comments."""
    found = asked(session, target, lambda of: _data(session, of).describe(table, like=like))
    if session.json:
        output.print_json(found)
    elif table is not None:
        for one in found.tables:
            _print_table(one)
    else:
        _print_schema(found)


def _named(table: shapes.DataTable) -> str:
    return table.name if table.in_schema == "public" else f"{table.in_schema}.{table.name}"


def _print_schema(found: shapes.DataSchema) -> None:
    if not found.tables:
        output.note("There are no tables yet.")
        return
    rows = [
        [
            _named(table),
            table.kind,
            "-" if table.rows_estimate is None else f"{table.rows_estimate}",
            output.human_bytes(table.size_bytes),
            ", ".join(column.name for column in table.columns[:8]) + (", …" if len(table.columns) > 8 else ""),
        ]
        for table in found.tables
    ]
    output.print_table(("TABLE", "KIND", "ROWS", "SIZE", "COLUMNS"), rows, right=("ROWS", "SIZE"))
    if found.more:
        output.warn("there are more tables: narrow it with --like")
    installed = ", ".join(one.name for one in found.extensions if one.installed)
    output.note(f"extensions: {installed}; {len(found.extensions)} can be had with CREATE EXTENSION")


def _print_table(table: shapes.DataTable) -> None:
    fields = {"table": _named(table), "kind": table.kind}
    if table.rows_estimate is not None:
        fields["rows"] = f"about {table.rows_estimate}"
    fields["size"] = output.human_bytes(table.size_bytes)
    if table.comment:
        fields["comment"] = table.comment
    for key in table.foreign_keys:
        fields[f"{', '.join(key.columns)} →"] = f"{key.table} ({', '.join(key.references)})"
    output.print_fields(fields)
    print()
    rows = [
        [
            column.name,
            column.type,
            "key" if column.name in table.primary_key else "" if column.nullable else "not null",
            column.default or "",
            column.comment or "",
        ]
        for column in table.columns
    ]
    output.print_table(("COLUMN", "TYPE", "", "DEFAULT", "COMMENT"), rows)
    if table.indexes:
        print()
        sized = [[one.definition, output.human_bytes(one.size_bytes)] for one in table.indexes]
        output.print_table(("INDEX", "SIZE"), sized, right=("SIZE",))


@command(data_app, "sample")
def sample(
    session: Session,
    target: Target,
    table: TableName,
    rows: Annotated[int, typer.Option("--rows", "-n", min=1, max=1000, help="How many.")] = 20,
    seed: Annotated[int, typer.Option("--seed", min=0, help="The same rows for the same seed.")] = 0,
    column: Columns = None,
    where: Where = None,
) -> None:
    """Show some rows of a table, by chance."""
    found = asked(
        session,
        target,
        lambda of: _data(session, of).sample(table, rows, seed=seed, columns=column or (), where=where),
    )
    _print_rows(session, found)


def _print_rows(session: Session, found: wire.SqlResult) -> None:
    from tenure.cli.commands.sql import print_rows

    if session.json:
        output.print_json(found)
    else:
        print_rows(found)


@command(data_app, "profile")
def profile(
    session: Session,
    target: Target,
    table: TableName,
    column: Columns = None,
    where: Where = None,
) -> None:
    """Show what is in a table's columns: what is missing, different, least, most, usual; its shape."""
    found = asked(session, target, lambda of: _data(session, of).profile(table, columns=column or (), where=where))
    if session.json:
        output.print_json(found)
        return
    whole = f", of about {found.rows_estimate}" if found.sampled and found.rows_estimate is not None else ""
    print(output.printable(f"{found.table}: {found.rows} rows{' looked at' if found.sampled else ''}{whole}"))
    rows = [_profiled(one, found.rows) for one in found.columns]
    output.print_table(
        ("COLUMN", "TYPE", "MISSING", "DIFFERENT", "LEAST", "MOST", "MEAN", "SHAPE"), rows, right=_NUMBERS
    )
    for one in found.columns if column else ():
        _print_shape(one)
    if found.columns_left_out:
        output.warn(f"not looked at: {', '.join(found.columns_left_out)}; name them with --column")


_NUMBERS = ("MISSING", "DIFFERENT", "MEAN")


def _profiled(one: shapes.ColumnProfile, rows: int) -> list[str]:
    return [
        one.name,
        one.type,
        f"{one.nulls / rows:.0%}" if one.nulls else "",
        str(one.distinct),
        _short(one.min),
        _short(one.max),
        "" if one.mean is None else f"{one.mean:.6g}",
        picture([bucket.count for bucket in one.histogram]) if len(one.histogram) > 1 else _top(one),
    ]


def _short(value: Any) -> str:
    text = "" if value is None else value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= 24 else text[:23] + "…"


def _top(one: shapes.ColumnProfile) -> str:
    return ", ".join(f"{_short(top.value)} ×{top.count}" for top in one.top[:3]) if one.distinct < 20 else ""


def picture(counts: list[int]) -> str:
    """One character a bucket, as high as it is full. What is not empty is seen."""
    most = max(counts, default=0)
    if not most:
        return ""
    return "".join(
        BLOCKS[0] if not count else BLOCKS[max(1, round(count / most * (len(BLOCKS) - 1)))] for count in counts
    )


def _print_shape(one: shapes.ColumnProfile) -> None:
    """Bars: of a histogram, or of the most frequent values."""
    bars = [(f"{_short(bucket.low)} … {_short(bucket.high)}", bucket.count) for bucket in one.histogram]
    bars = bars or [(_short(top.value), top.count) for top in one.top]
    if not bars:
        return
    print(f"\n{output.printable(one.name)}")
    width, most = max(len(label) for label, _ in bars), max(count for _, count in bars) or 1
    for label, count in bars:
        bar = "█" * max(round(count / most * BAR), 1 if count else 0)
        print(f"  {output.printable(label).rjust(width)}  {bar} {count}")


# --- results -------------------------------------------------------------------------------------------------------------
@command(results_app, "save")
def save(
    session: Session,
    target: Target,
    name: ResultName,
    query: Annotated[str, typer.Argument(metavar="QUERY", show_default=False, help="One SELECT.")],
    expires_h: Annotated[
        float | None, typer.Option("--expires", min=0.001, metavar="HOURS", help="Drop it after so many hours.")
    ] = None,
) -> None:
    """Keep the rows of a query as the table results.NAME; one of the same name is replaced."""
    expires_s = None if expires_h is None else expires_h * 3600
    found = asked(session, target, lambda of: _data(session, of).save_result(name, query, expires_s=expires_s))
    if session.json:
        output.print_json(found)
    else:
        print(f"{found.table}: {', '.join(map(output.printable, found.columns))}")


@command(results_app, "list")
def list_results(session: Session, target: Target) -> None:
    """List saved results, the newest first."""
    found = asked(session, target, lambda of: _data(session, of).results())
    if session.json:
        output.print_json({"results": found})
        return
    if not found:
        output.note("No result was saved yet.")
        return
    rows = [
        [one.name, output.human_bytes(one.size_bytes), one.made_by, output.human_age(one.made_at), _query(one.query)]
        for one in found
    ]
    output.print_table(("RESULT", "SIZE", "BY", "MADE", "QUERY"), rows, right=("SIZE",))


def _query(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= 60 else line[:59] + "…"


@command(results_app, "show")
def show_result(
    session: Session,
    target: Target,
    name: ResultName,
    rows: Annotated[int, typer.Option("--rows", "-n", min=0, max=10_000, help="How many.")] = 100,
    offset: Annotated[int, typer.Option("--offset", min=0, help="Pass over so many first.")] = 0,
    where: Where = None,
) -> None:
    """Show the rows of a saved result."""
    found = asked(session, target, lambda of: _data(session, of).read_result(name, rows, offset=offset, where=where))
    _print_rows(session, found)
    if found.truncated and not session.json:
        output.warn("there are more rows; see --rows and --offset")


@command(results_app, "drop")
def drop_result(session: Session, target: Target, name: ResultName) -> None:
    """Drop a saved result."""
    asked(session, target, lambda of: _data(session, of).drop_result(name))
    _told(session, name, "is dropped")


def _told(session: Session, name: str, what: str) -> None:
    if session.json:
        output.print_json({"name": name, "done": what})
    else:
        print(f"{name} {what}.")


# --- search --------------------------------------------------------------------------------------------------------------
@command(search_app, "create")
def create_index(
    session: Session,
    target: Target,
    index: IndexName,
    table: TableName,
    columns: Annotated[
        list[str], typer.Argument(metavar="COLUMN...", show_default=False, help="Whose text is searched.")
    ],
    model: Annotated[
        str | None, typer.Option("--model", metavar="NAME", help="Default: what the server is set up with, else local.")
    ] = None,
) -> None:
    """Make text columns of a table searchable; the index follows the table."""
    with output.waiting("making the index"):
        found = asked(session, target, lambda of: _data(session, of).create_index(index, table, columns, model=model))
    _print_index(session, found)


def _print_index(session: Session, found: shapes.SearchIndex) -> None:
    if session.json:
        output.print_json(found)
        return
    print(output.printable(f"{found.name}: {found.rows} rows of {found.table}, by {found.model}"))
    if found.pending:
        output.warn(f"{found.pending} rows are still to be brought in; `tenure data search refresh` goes on")


@command(search_app, "list")
def list_indexes(session: Session, target: Target) -> None:
    """List search indexes."""
    found = asked(session, target, lambda of: _data(session, of).indexes())
    if session.json:
        output.print_json(found)
        return
    if not found.indexes:
        output.note(f"There is no search index. Models: {', '.join(found.models)}.")
        return
    rows = [
        [one.name, one.table, ", ".join(one.columns), one.model, str(one.rows), str(one.pending)]
        for one in found.indexes
    ]
    output.print_table(("INDEX", "TABLE", "COLUMNS", "MODEL", "ROWS", "PENDING"), rows, right=("ROWS", "PENDING"))


@command(search_app, "query")
def query_index(
    session: Session,
    target: Target,
    query: Annotated[str, typer.Argument(metavar="TEXT", show_default=False, help="What is looked for.")],
    index: Annotated[
        str | None, typer.Option("--index", metavar="INDEX", help="Needed where there are several.")
    ] = None,
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, max=100, help="How many.")] = 10,
    column: Columns = None,
    where: Where = None,
) -> None:
    """Search: the rows whose text fits best."""
    found = asked(
        session,
        target,
        lambda of: _data(session, of).search(query, index=index, limit=limit, where=where, columns=column or ()),
    )
    if session.json:
        output.print_json(found)
        return
    if not found.hits:
        output.note("Nothing fits.")
    names = column or []
    rows = [
        [
            f"{hit.similarity:.2f}",
            ", ".join(map(str, hit.key.values())),
            *(_short(hit.row.get(name)) for name in names),
            _query(hit.text),
        ]
        for hit in found.hits
    ]
    if rows:
        output.print_table(("ALIKE", "KEY", *(name.upper() for name in names), "TEXT"), rows, right=("ALIKE",))
    if found.pending:
        output.warn(f"{found.pending} changed rows were not looked at yet")


@command(search_app, "refresh")
def refresh_index(session: Session, target: Target, index: IndexName) -> None:
    """Bring in rows that changed, for a minute at most. A search does that, too, for a few seconds."""
    with output.waiting("refreshing"):
        found = asked(session, target, lambda of: _data(session, of).refresh_index(index))
    _print_index(session, found)


@command(search_app, "drop")
def drop_index(session: Session, target: Target, index: IndexName) -> None:
    """Drop a search index; the table stays as it is."""
    asked(session, target, lambda of: _data(session, of).drop_index(index))
    _told(session, index, "is dropped")


def register(app: typer.Typer) -> None:
    app.add_typer(data_app, name="data", rich_help_panel=OFFICE)
