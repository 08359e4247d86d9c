"""tenure cp"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Annotated

import typer

from tenure.cli import output
from tenure.cli.command import OFFICE, command
from tenure.cli.commands.execute import User
from tenure.cli.session import Session
from tenure.errors import InvalidArgument
from tenure.names import check_name


def copy(
    session: Session,
    source: Annotated[str, typer.Argument(metavar="SRC", show_default=False, help="A path, or AGENT:path.")],
    target: Annotated[str, typer.Argument(metavar="DST", show_default=False, help="A path, or AGENT:path.")],
    user: User = "agent",
) -> None:
    """Copy a file or directory into an office or out of it.

    One side is AGENT:path. Goes into DST when that is a directory. Relative paths in an office begin at its home."""
    from tenure.client.transfer import download, upload

    if "-" in (source, target):
        raise InvalidArgument(
            "A path is needed on both sides; '-' is none.",
            hint="For streams: tenure exec AGENT -- cat FILE, or … | tenure exec AGENT -- tee FILE",
        )
    come_from, go_to = split(source), split(target)
    if (come_from is None) == (go_to is None):
        raise InvalidArgument(
            "Exactly one side must be in an office.", hint="For example: tenure cp report.md analyst:docs/"
        )
    transport = session.tenure.transport
    if go_to is not None:
        local = Path(source)
        with progress_bar(f"to {go_to[0]}", _size(local)) as progress:
            place = upload(transport, go_to[0], local, go_to[1], progress, output.warn, user)
        where = f"{go_to[0]}:{place}"
    else:
        assert come_from is not None
        with progress_bar(f"from {come_from[0]}", None) as progress:
            where = str(download(transport, *come_from, Path(target), progress, output.warn, user))
    if session.json:
        output.print_json({"source": source, "target": where})
    else:
        output.note(f"copied to {where}")


def split(text: str) -> tuple[str, str] | None:
    """(agent, path) of `AGENT:path`; None for a path of this machine (write ./a:b for one with a colon)."""
    head, colon, path = text.partition(":")
    if not colon or "/" in head or head in ("", ".", ".."):
        return None
    return check_name(head), path


def _size(local: Path) -> int | None:
    from tenure.client.archive import total_bytes

    return total_bytes(local) if local.exists() and output.is_terminal(sys.stderr) else None


@contextlib.contextmanager
def progress_bar(what: str, total: int | None) -> Generator[Callable[[int], None]]:
    """A bar on stderr where that is a terminal, nothing elsewhere."""
    if not output.is_terminal(sys.stderr):
        yield lambda _: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bars:
        task = bars.add_task(what, total=total)
        yield lambda count: bars.advance(task, count)


def register(app: typer.Typer) -> None:
    command(app, "cp", rich_help_panel=OFFICE)(copy)
