"""tenure key create | list | revoke: access keys for programs that speak S3."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from tenure.cli import output
from tenure.cli.command import OFFICE, command
from tenure.cli.commands.lifecycle import period_s
from tenure.cli.session import Session
from tenure.errors import InvalidArgument

if TYPE_CHECKING:
    from tenure.wire.keys import BucketLevel

key_app = typer.Typer(help="Access keys for programs that speak S3.")

ForAgent = Annotated[
    str | None, typer.Option("--agent", metavar="AGENT", show_default=False, help="Act as this agent.")
]


@command(key_app, "create")
def create(
    session: Session,
    agent: ForAgent = None,
    owner: Annotated[bool, typer.Option("--owner", help="Act as you: all shared buckets.")] = False,
    expires: Annotated[
        str | None,
        typer.Option("--expires", metavar="TIME", show_default=False, help="Like 12h, 30d; never if not given."),
    ] = None,
    read: Annotated[
        list[str] | None,
        typer.Option(
            "--read", metavar="BUCKET", show_default=False, help="Only this bucket, to read. May be repeated."
        ),
    ] = None,
    write: Annotated[
        list[str] | None,
        typer.Option("--write", metavar="BUCKET", show_default=False, help="Only this bucket. May be repeated."),
    ] = None,
    comment: Annotated[
        str, typer.Option("--comment", metavar="TEXT", show_default=False, help="What the key is for.")
    ] = "",
) -> None:
    """Make an access key and show its secret, once.

    Whoever has it may do with objects what the agent may, or you."""
    if (agent is None) == (not owner):
        raise InvalidArgument("Say whom the key acts as.", hint="tenure key create --agent AGENT, or --owner")
    levels: dict[str, BucketLevel] = {}
    levels.update((name, "read") for name in read or ())
    levels.update((name, "write") for name in write or ())
    expires_s = None if expires is None else period_s(expires) or None
    made = session.tenure.access_keys.create(agent, expires_s=expires_s, buckets=levels, comment=comment)
    if session.json:
        output.print_json(made)
        return
    print(f"AWS_ACCESS_KEY_ID={made.id}")
    print(f"AWS_SECRET_ACCESS_KEY={made.secret}")
    if made.endpoint_url:
        print(f"AWS_ENDPOINT_URL={made.endpoint_url}")
    print("AWS_REGION=local")
    output.note("The secret is shown this once. The key ends by: tenure key revoke " + made.id)


@command(key_app, "list")
def list_keys(session: Session, agent: ForAgent = None) -> None:
    """List the access keys, the oldest first."""
    found = session.tenure.access_keys.list(agent)
    if session.json:
        output.print_json({"keys": found})
        return
    if not found:
        output.note("There are no access keys. Make one: tenure key create --agent AGENT")
        return
    output.print_table(
        ("ID", "ACTS AS", "BUCKETS", "COMMENT", "MADE", "LAST USED", "EXPIRES"),
        [
            (
                one.id,
                one.principal.removeprefix("office:"),
                ", ".join(f"{name} ({level})" for name, level in sorted(one.buckets.items())) or "all",
                output.printable(one.comment) or "-",
                output.human_age(one.created_at),
                output.human_age(one.last_used_at) if one.last_used_at else "never",
                f"{one.expires_at:%Y-%m-%d %H:%M}" if one.expires_at else "never",
            )
            for one in found
        ],
    )


@command(key_app, "revoke")
def revoke(
    session: Session,
    key: Annotated[str | None, typer.Argument(metavar="[KEY]", show_default=False, help="The key's id.")] = None,
    lent: Annotated[
        str | None,
        typer.Option("--lent", metavar="AGENT", show_default=False, help="What the agent's office was lent instead."),
    ] = None,
) -> None:
    """End an access key, at once.

    With --lent: the short-lived key that an office was lent, and every presigned address of the agent. The office fetches a new
    key by itself."""
    if (key is None) == (lent is None):
        raise InvalidArgument("Say which key.", hint="tenure key revoke KEY, or --lent AGENT")
    if key is not None:
        session.tenure.access_keys.revoke(key)
    else:
        session.tenure.access_keys.revoke_lent(str(lent))
    if session.json:
        output.print_json({"revoked": key or lent})
    else:
        print(f"{key} is revoked." if key else f"What {lent} was lent is revoked.")


def register(app: typer.Typer) -> None:
    app.add_typer(key_app, name="key", rich_help_panel=OFFICE)
