"""tenure sql"""

from __future__ import annotations

import contextlib
import json
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tenure.cli import output
from tenure.cli.command import OFFICE, command
from tenure.cli.session import Session
from tenure.cli.target import PREFIX, Target, asked
from tenure.errors import DatabaseError, InvalidArgument, NotFound, ServerUnreachable, TooLarge

if TYPE_CHECKING:
    from tenure import wire

ROWS_MAX = 10_000
"""What the server gives in one answer; --csv has no such limit."""
_QUERY = re.compile(r"(?:\s|--[^\n]*\n|\()*(?:select|values|table|with)\b", re.IGNORECASE)


def sql(
    session: Session,
    target: Target,
    statement: Annotated[
        str | None, typer.Argument(metavar="[STATEMENT]", show_default=False, help="Without: psql, on this terminal.")
    ] = None,
    file: Annotated[
        str | None, typer.Option("--file", "-f", metavar="FILE", help="Statements in a file here; - is stdin.")
    ] = None,
    csv: Annotated[bool, typer.Option("--csv", help="Comma-separated values, with a line of headers.")] = False,
    read_only: Annotated[bool, typer.Option("--read-only", help="Refuse what would change something.")] = False,
    timeout_s: Annotated[
        float, typer.Option("--timeout", min=0.1, max=600, metavar="SECONDS", help="Cancel it after so long.")
    ] = 600.0,
    rows_max: Annotated[
        int, typer.Option("--limit", "--rows-max", min=1, max=ROWS_MAX, help="Rows at most, in a table and in JSON.")
    ] = ROWS_MAX,
) -> int:
    """Run SQL in an agent's own database, or in a shared one, in one transaction.

    Without a statement: psql, on this terminal or reading stdin. With --csv the rows of a query are streamed: any number
    of them."""
    if csv and session.json:
        raise InvalidArgument("--csv and --json exclude each other.")
    if file is not None:
        if statement is not None:
            raise InvalidArgument("Give a statement or --file, not both.")
        statement = _read(file)
    if statement is None:
        if read_only:
            raise InvalidArgument("--read-only needs a statement.", hint="In psql: BEGIN READ ONLY;")
        return _psql(session, target, csv)
    if not statement.strip():
        raise InvalidArgument("The statement is empty.")
    if csv and is_one_query(statement) and not read_only and timeout_s == 600.0:
        asked(session, target, lambda of: _stream_csv(session, of, statement))
        return 0
    found = asked(
        session,
        target,
        lambda of: _run(session, of, statement, rows_max=rows_max, read_only=read_only, timeout_s=timeout_s),
    )
    if session.json:
        output.print_json(found)
    elif csv:
        _print_csv(found)
    else:
        print_rows(found)
    if found.truncated:
        hint = "all of them come with --csv" if is_one_query(statement) else "see --limit"
        output.warn(f"only the first {len(found.rows)} rows are shown; {hint}")
    return 0


def _read(file: str) -> str:
    from tenure import wire

    path = Path(file)
    if file != "-" and not path.is_file():
        raise NotFound(f"There is no file {path}.")
    with contextlib.nullcontext(sys.stdin.buffer) if file == "-" else path.open("rb") as opened:
        data = opened.read(4 * wire.STATEMENT_CHARS_MAX + 1)
    text = data.decode("utf-8", "replace")
    if len(text) > wire.STATEMENT_CHARS_MAX:
        raise TooLarge(
            f"The statements have more than {wire.STATEMENT_CHARS_MAX} characters.",
            hint="tenure sql AGENT < FILE is psql.",
        )
    return text


def _run(session: Session, of: str, statement: str, **how: Any) -> wire.SqlResult:
    from tenure import wire
    from tenure.client import data_calls
    from tenure.client.views import refusing

    with refusing():
        request = wire.SqlRequest(statement=statement, **how)
    return session.tenure.transport.send(data_calls.sql(of, request))


def is_one_query(statement: str) -> bool:
    """Whether its rows can be streamed. What only looks like several statements (a ';' in a text) may be taken for that."""
    return _QUERY.match(statement) is not None and ";" not in statement.strip().rstrip(";")


def _stream_csv(session: Session, of: str, statement: str) -> None:
    from tenure import wire
    from tenure.client import data_calls
    from tenure.client.views import refusing

    sent_bytes = 0
    with refusing():
        request = wire.CsvRequest(statement=statement)
    try:
        with session.tenure.transport.stream(data_calls.sql_csv(of, request)) as response:
            for piece in response.iter_bytes():
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
    if agent.startswith(PREFIX):
        raise InvalidArgument(
            "psql runs in an office.",
            hint=f'tenure sql {agent} "select 1"; or psql in an office that it was granted to.',
        )
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


def print_rows(found: wire.SqlResult) -> None:
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
