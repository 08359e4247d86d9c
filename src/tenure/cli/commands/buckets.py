"""tenure bucket create | list | show | usage | quota | grant | revoke | delete: buckets that agents share."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Annotated

import typer

from tenure.cli import output
from tenure.cli.command import OFFICE, command
from tenure.cli.commands.lifecycle import period_s
from tenure.cli.session import Session
from tenure.errors import InvalidArgument

if TYPE_CHECKING:
    from tenure.wire.buckets import Bucket, BucketLevel

bucket_app = typer.Typer(help="Buckets that agents share.")

Name = Annotated[str, typer.Argument(metavar="BUCKET", show_default=False, help="The bucket's name.")]
Agent = Annotated[str, typer.Argument(metavar="AGENT", show_default=False, help="The agent's name.")]


@command(bucket_app, "create")
def create(
    session: Session,
    name: Name,
    quota: Annotated[
        float | None,
        typer.Option("--quota", metavar="GB", show_default=False, help="What it may take; 10 if not given."),
    ] = None,
    backend: Annotated[
        str,
        typer.Option(
            "--backend",
            metavar="ADDRESS",
            show_default=False,
            help="Lies elsewhere: s3://BUCKET/PREFIX/, gs://…, az://… or file:///DIRECTORY.",
        ),
    ] = "",
) -> None:
    """Make a shared bucket, which no agent can reach yet.

    With --backend what lies there is what is in it; the server's environment has the credentials. Such a bucket keeps no
    versions, tags or settings."""
    made = session.tenure.buckets.create(name, quota_gb=quota, backend=backend)
    if session.json:
        output.print_json(made)
        return
    print(f"{made.name} is there.")
    output.note(f"Let an agent use it: tenure bucket grant {made.name} AGENT --write")


@command(bucket_app, "list")
def list_buckets(session: Session) -> None:
    """List the shared buckets."""
    found = session.tenure.buckets.list()
    if session.json:
        output.print_json({"buckets": found})
        return
    if not found:
        output.note("There are no shared buckets. Make one: tenure bucket create NAME")
        return
    output.print_table(
        ("NAME", "LIES AT", "QUOTA", "MADE"),
        [
            (one.name, output.printable(one.backend), _size(one.quota_bytes), output.human_age(one.created_at))
            for one in found
        ],
    )


@command(bucket_app, "show")
def show(session: Session, name: Name) -> None:
    """Show a shared bucket, and to whom it is granted."""
    found, grants = session.tenure.buckets.get(name), session.tenure.buckets.grants(name)
    if session.json:
        output.print_json({"bucket": found, "grants": grants})
        return
    print(_described(found))
    if not grants:
        output.note(f"It is granted to nobody: tenure bucket grant {name} AGENT")
        return
    output.print_table(
        ("AGENT", "LEVEL", "PREFIX", "GRANTED", "EXPIRES"),
        [
            (
                one.agent,
                one.level,
                output.printable(one.prefix) or "-",
                output.human_age(one.created_at),
                f"{one.expires_at:%Y-%m-%d %H:%M}" if one.expires_at else "never",
            )
            for one in grants
        ],
    )


@command(bucket_app, "usage")
def usage(session: Session, name: Name) -> None:
    """Show how much a shared bucket takes."""
    found = session.tenure.buckets.get(name)
    if session.json:
        output.print_json(found)
    else:
        print(_described(found))


@command(bucket_app, "quota")
def quota(
    session: Session,
    name: Name,
    gb: Annotated[float, typer.Argument(metavar="GB", show_default=False, help="What it may take.")],
) -> None:
    """Set how much a shared bucket may take. Takes effect at once."""
    found = session.tenure.buckets.limit(name, gb)
    if session.json:
        output.print_json(found)
    else:
        print(_described(found))


@command(bucket_app, "grant")
def grant(
    session: Session,
    name: Name,
    agent: Agent,
    write: Annotated[bool, typer.Option("--write", help="To write and delete, too; without only to read.")] = False,
    prefix: Annotated[
        str,
        typer.Option("--prefix", metavar="PREFIX", show_default=False, help="Only keys that begin so."),
    ] = "",
    expires: Annotated[
        str | None,
        typer.Option("--expires", metavar="TIME", show_default=False, help="Like 12h, 30d; never if not given."),
    ] = None,
) -> None:
    """Let an agent use a shared bucket, at s3:9000 in its office. Takes the place of an earlier grant."""
    level: BucketLevel = "write" if write else "read"
    until = None
    if expires is not None:
        seconds = period_s(expires)
        if not seconds:
            raise InvalidArgument(f"{expires!r} is no time.", hint="Write it like 12h or 30d.")
        until = datetime.now(UTC) + timedelta(seconds=seconds)
    made = session.tenure.buckets.grant(name, agent, level, prefix=prefix, expires_at=until)
    if session.json:
        output.print_json(made)
        return
    what = f"{name}, what begins with {output.printable(prefix)}" if prefix else name
    print(f"{agent} may {level} {what}.")


@command(bucket_app, "revoke")
def revoke(session: Session, name: Name, agent: Agent) -> None:
    """End an agent's grant to a shared bucket, from its next request on."""
    session.tenure.buckets.revoke(name, agent)
    if session.json:
        output.print_json({"revoked": agent, "bucket": name})
    else:
        print(f"{agent} may use {name} no more.")


@command(bucket_app, "delete")
def delete(
    session: Session,
    name: Name,
    force: Annotated[bool, typer.Option("--force", help="With all that is in it. Cannot be undone.")] = False,
) -> None:
    """Delete a shared bucket and its grants.

    What lies in somebody else's storage (--backend) stays there."""
    session.tenure.buckets.delete(name, force=force)
    if session.json:
        output.print_json({"deleted": name})
    else:
        print(f"{name} is deleted.")


def _described(bucket: Bucket) -> str:
    if bucket.quota_bytes is None:
        return f"{bucket.name} lies at {output.printable(bucket.backend)}."
    objects = "1 object" if bucket.objects == 1 else f"{bucket.objects} objects"
    return f"{bucket.name}: {objects}, {_size(bucket.used_bytes)} of {_size(bucket.quota_bytes)}"


def _size(size_bytes: int | None) -> str:
    return "-" if size_bytes is None else output.human_bytes(size_bytes)


def register(app: typer.Typer) -> None:
    app.add_typer(bucket_app, name="bucket", rich_help_panel=OFFICE)
