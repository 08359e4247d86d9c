"""tenure objects put | get | list | delete | presign"""

from __future__ import annotations

import contextlib
import itertools
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer

from tenure.cli import output
from tenure.cli.command import OFFICE, command
from tenure.cli.commands.agents import AgentName
from tenure.cli.commands.lifecycle import period_s
from tenure.cli.session import Session
from tenure.errors import InvalidArgument, NotFound

CHUNK_BYTES = 256 * 1024

ObjectPath = Annotated[
    str, typer.Argument(metavar="BUCKET/NAME", show_default=False, help="The object, for example reports/2014.md.")
]

objects_app = typer.Typer(help="An agent's object storage.")


def split_object(text: str) -> tuple[str, str]:
    bucket, slash, name = text.partition("/")
    if not bucket or not slash or not name:
        raise InvalidArgument(
            f"{text!r} does not name an object.", hint="Write BUCKET/NAME, for example reports/2014.md."
        )
    return bucket, name


@command(objects_app, "put")
def put(
    session: Session,
    agent: AgentName,
    file: Annotated[str, typer.Argument(metavar="FILE", show_default=False, help="A file here; - is stdin.")],
    target: ObjectPath,
    content_type: Annotated[str | None, typer.Option("--type", metavar="MIME", help="Default: by its name.")] = None,
) -> None:
    """Store a file as an object; one of the same name is replaced."""
    import mimetypes

    bucket, name = split_object(target)
    if name.endswith("/") and file != "-":
        name += Path(file).name
    kind = content_type or mimetypes.guess_type(name)[0]
    objects = session.tenure.agents(agent).objects
    found = objects.put(bucket, name, _stdin() if file == "-" else _file(file), kind)
    if session.json:
        output.print_json(found)
    else:
        print(f"{found.bucket}/{found.name}  {output.human_bytes(found.size_bytes)}")


def _stdin() -> Iterator[bytes]:
    while data := os.read(sys.stdin.fileno(), CHUNK_BYTES):
        yield data


def _file(text: str) -> Path:
    path = Path(text)
    if path.is_dir():
        raise InvalidArgument(f"{path} is a directory.", hint="Put its files one by one.")
    if not path.exists():
        raise NotFound(f"There is no file {path}.")
    return path


@command(objects_app, "get")
def get(
    session: Session,
    agent: AgentName,
    source: ObjectPath,
    file: Annotated[str, typer.Argument(metavar="[FILE]", help="Where to write it; - is stdout.")] = "-",
) -> None:
    """Write an object to a file, or to stdout."""
    bucket, name = split_object(source)
    if session.json and file == "-":
        raise InvalidArgument("With --json the object needs a file to go to.", hint="tenure objects get … FILE --json")
    path = Path(file) / Path(name).name if file != "-" and Path(file).is_dir() else Path(file)
    if file != "-" and not path.parent.is_dir():
        raise NotFound(f"There is no directory {path.parent}.")
    pieces = session.tenure.agents(agent).objects.stream(bucket, name)
    first = next(pieces, b"")  # Asked before the file is opened: an object that does not exist must not empty it.
    size_bytes = 0
    with contextlib.nullcontext(sys.stdout.buffer) if file == "-" else path.open("wb") as out:
        for piece in itertools.chain([first], pieces):
            size_bytes += len(piece)
            out.write(piece)
        out.flush()
    if session.json:
        output.print_json({"bucket": bucket, "name": name, "file": str(path), "size_bytes": size_bytes})


@command(objects_app, "list")
def list_objects(
    session: Session,
    agent: AgentName,
    prefix: Annotated[
        str | None, typer.Argument(metavar="BUCKET[/PREFIX]", show_default=False, help="Only these.")
    ] = None,
) -> None:
    """List an agent's objects."""
    bucket, _, beginning = (prefix or "").partition("/")
    found = session.tenure.agents(agent).objects.list(bucket or None, beginning or None)
    if session.json:
        output.print_json({"objects": found})
        return
    if not found:
        output.note("There are no such objects.")
        return
    output.print_table(
        ("OBJECT", "SIZE", "TYPE", "MODIFIED"),
        [
            [
                f"{item.bucket}/{item.name}",
                output.human_bytes(item.size_bytes),
                item.content_type or "-",
                output.human_age(item.modified_at),
            ]
            for item in found
        ],
        right=("SIZE",),
    )


@command(objects_app, "delete")
def delete(session: Session, agent: AgentName, target: ObjectPath) -> None:
    """Delete an object."""
    bucket, name = split_object(target)
    session.tenure.agents(agent).objects.delete(bucket, name)
    if session.json:
        output.print_json({"deleted": f"{bucket}/{name}"})
    else:
        print(f"{bucket}/{name} is deleted.")


@command(objects_app, "presign")
def presign(
    session: Session,
    agent: AgentName,
    target: ObjectPath,
    put: Annotated[bool, typer.Option("--put", help="To store the object, instead of reading it.")] = False,
    expires: Annotated[str, typer.Option("--expires", metavar="TIME", help="Up to 7d.")] = "1h",
) -> None:
    """Make an address at which anybody may read (or store) one object, for a time.

    It is the server's address for S3 clients, and works with curl and in a browser. `tenure key revoke --lent AGENT` ends it."""
    bucket, name = split_object(target)
    made = session.tenure.agents(agent).objects.presign(bucket, name, put=put, expires_s=int(period_s(expires)))
    if session.json:
        output.print_json(made)
    else:
        print(made.url)


def register(app: typer.Typer) -> None:
    app.add_typer(objects_app, name="objects", rich_help_panel=OFFICE)
