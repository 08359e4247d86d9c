"""tenure sql"""

from __future__ import annotations

import json
import re
import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tenure.cli import output
from tenure.cli.command import OFFICE, command
from tenure.cli.commands.agents import AgentName
from tenure.cli.session import Session
from tenure.errors import DatabaseError, InvalidArgument, ServerUnreachable

if TYPE_CHECKING:
    from tenure import wire

ROWS_MAX = 10_000
"""What the server gives in one answer; --csv has no such limit."""
_QUERY = re.compile(r"(?:\s|--[^\n]*\n|\()*(?:select|values|table|with)\b", re.IGNORECASE)


def sql(
    session: Session,
    agent: AgentName,
    statement: Annotated[
        str | None, typer.Argument(metavar="[STATEMENT]", show_default=False, help="Without: psql, on this terminal.")
    ] = None,
    csv: Annotated[bool, typer.Option("--csv", help="Comma-separated values, with a line of headers.")] = False,
    rows_max: Annotated[
        int, typer.Option("--rows-max", min=1, max=ROWS_MAX, help="Rows at most, in a table and in JSON.")
    ] = ROWS_MAX,
) -> int:
    """Run SQL in an office's own database, in one transaction.

    Without a statement: psql, on this terminal or reading stdin. With --csv the rows of a query are streamed: any number
    of them."""
    if csv and session.json:
        raise InvalidArgument("--csv and --json exclude each other.")
    if statement is None:
        return _psql(session, agent, csv)
    if not statement.strip():
        raise InvalidArgument("The statement is empty.")
    if csv and is_one_query(statement):
        _stream_csv(session, agent, statement)
        return 0
    found = session.tenure.agents(agent).sql(statement, rows_max=rows_max)
    if session.json:
        output.print_json(found)
    elif csv:
        _print_csv(found)
    else:
        _print_rows(found)
    if found.truncated:
        hint = "all of them come with --csv" if is_one_query(statement) else "see --rows-max"
        output.warn(f"only the first {len(found.rows)} rows are shown; {hint}")
    return 0


def is_one_query(statement: str) -> bool:
    """Whether its rows can be streamed. What only looks like several statements (a ';' in a text) may be taken for that."""
    return _QUERY.match(statement) is not None and ";" not in statement.strip().rstrip(";")


def _stream_csv(session: Session, agent: str, statement: str) -> None:
    sent_bytes = 0
    try:
        for piece in session.tenure.agents(agent).sql_csv(statement):
            sys.stdout.buffer.write(piece)
            sent_bytes += len(piece)
        sys.stdout.buffer.flush()
    except ServerUnreachable as error:
        if not sent_bytes:
            raise
        raise DatabaseError(
            f"The rows broke off after {sent_bytes} bytes: the query failed, or the server went away.",
            hint="`tenure logs --server` says which.",
        ) from error


def _psql(session: Session, agent: str, csv: bool) -> int:
    from tenure.cli.commands.execute import attach_plain, attach_terminal, stdin_fd
    from tenure.client.attach import AttachRequest

    if session.json:
        raise InvalidArgument("--json needs a statement.", hint='tenure sql AGENT "select 1" --json')
    request = AttachRequest(argv=["psql", "--csv"] if csv else ["psql"])
    if output.is_terminal(sys.stdin) and output.is_terminal(sys.stdout):
        return attach_terminal(session, agent, request)
    return attach_plain(session, agent, request, None, stdin_fd())


def _text(value: Any) -> str:
    """As psql would write it; NULL is empty."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "t" if value else "f"
    if isinstance(value, str):
        return value
    return json.dumps(value, ensure_ascii=False) if isinstance(value, dict | list) else str(value)


def _print_csv(found: wire.SqlResult) -> None:
    import csv

    writer = csv.writer(sys.stdout, lineterminator="\n")
    if found.columns:
        writer.writerow(found.columns)
        writer.writerows([_text(value) for value in row] for row in found.rows)


def _print_rows(found: wire.SqlResult) -> None:
    if not found.columns:
        print(found.status)
        return
    numbers = [
        name
        for at, name in enumerate(found.columns)
        if found.rows and all(isinstance(row[at], int | float) and not isinstance(row[at], bool) for row in found.rows)
    ]
    output.print_table(found.columns, [[_text(value) for value in row] for row in found.rows], right=numbers)
    output.note(f"({len(found.rows)} {'row' if len(found.rows) == 1 else 'rows'})")


def register(app: typer.Typer) -> None:
    command(app, "sql", rich_help_panel=OFFICE)(sql)
