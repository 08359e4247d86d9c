"""tenure webhook create | list | show | deliveries | delivery | test | rotate | delete"""

from __future__ import annotations

import base64
import sys
from typing import TYPE_CHECKING, Annotated

import typer

from tenure.cli import output
from tenure.cli.command import WORK, command
from tenure.cli.commands.agents import AgentName
from tenure.cli.commands.schedules import OfAgent, time_of, told
from tenure.cli.session import Session
from tenure.errors import InvalidArgument

if TYPE_CHECKING:
    from tenure.wire.triggers import Webhook

WebhookName = Annotated[
    str, typer.Argument(metavar="WEBHOOK", show_default=False, help="The webhook's name, or its id: whk_…")
]
SecretStdin = Annotated[
    bool, typer.Option("--secret-stdin", help="Read from stdin what the sender signs with. Without, a secret is made.")
]
SECRET_BYTES_READ_MAX = 4096

webhook_app = typer.Typer(help="Addresses at which agents receive what others send.")


@command(webhook_app, "create")
def create(
    session: Session,
    name: Annotated[str, typer.Argument(metavar="NAME", show_default=False, help="The webhook's name.")],
    agent: AgentName,
    signature: Annotated[
        str,
        typer.Option(
            "--signature",
            metavar="KIND",
            help="How the sender signs: standard, github, stripe, slack, shopify, none, or "
            "hmac:HEADER:sha1|sha256|sha512:hex|base64.",
        ),
    ] = "standard",
    secret_stdin: SecretStdin = False,
    keep: Annotated[
        str, typer.Option("--keep", metavar="INTERVAL", help="Older deliveries are deleted when new ones come.")
    ] = "30d",
) -> None:
    """Give an agent an address at which it receives what others send.

    What comes is in the table webhooks.deliveries of the agent's database before its sender is told so. The secret is shown
    once."""
    secret = _read_secret() if secret_stdin else None
    made = session.tenure.webhooks.create(name, agent, signature=signature, secret=secret, keep=keep)
    if session.json:
        output.print_json(made)
        return
    _print_address(session, made, shown_secret=not secret_stdin)


def _read_secret() -> str:
    secret = sys.stdin.buffer.read(SECRET_BYTES_READ_MAX).decode("utf-8", "replace").strip()
    if not secret:
        raise InvalidArgument("There is no secret on stdin.", hint="printf %s SECRET | tenure webhook create …")
    return secret


def _print_address(session: Session, one: Webhook, *, shown_secret: bool) -> None:
    fields = {"id": one.id, "address": f"http://127.0.0.1:{session.settings.port}{one.path}"}
    if shown_secret and one.secret:
        fields["secret"] = one.secret
    output.print_fields(fields)
    output.note("Senders elsewhere need a way to this port, such as a reverse proxy for /hooks/: docs/webhooks.md.")


@command(webhook_app, "list")
def list_webhooks(
    session: Session,
    agent: Annotated[
        str | None, typer.Option("--agent", metavar="AGENT", show_default=False, help="Only this agent's.")
    ] = None,
) -> None:
    """List webhooks, by agent and name."""
    found = session.tenure.webhooks.list(agent)
    if session.json:
        output.print_json({"webhooks": found})
        return
    if not found:
        output.note("There are no webhooks. Make one: tenure webhook create NAME AGENT")
        return
    output.print_table(
        ("ID", "NAME", "AGENT", "SIGNATURE", "RECEIVED", "REFUSED", "LAST"),
        [
            (
                one.id,
                one.name,
                one.agent,
                one.signature,
                str(one.received),
                str(one.refused),
                output.human_age(one.last_received_at) if one.last_received_at else "never",
            )
            for one in found
        ],
        right=("RECEIVED", "REFUSED"),
    )


@command(webhook_app, "show")
def show(session: Session, webhook: WebhookName, agent: OfAgent = None) -> None:
    """Show a webhook: its address, and what came."""
    one = session.tenure.webhooks.get(webhook, agent)
    if session.json:
        output.print_json(one)
        return
    fields = {
        "id": one.id,
        "name": one.name,
        "agent": one.agent,
        "address": f"http://127.0.0.1:{session.settings.port}{one.path}",
        "signature": one.signature,
        "kept for": output.human_duration(one.keep_s),
        "received": f"{one.received}, {one.repeated} of them known already; the last {time_of(one.last_received_at)}",
        "refused": str(one.refused),
    }
    if one.last_refusal:
        fields["refused"] += f"; the last {time_of(one.last_refused_at)}: {one.last_refusal}"
    if one.waiting:
        fields["waiting"] = f"{one.waiting} on the server's disk, for the agent's database"
    if one.rotated_at:
        fields["rotated"] = time_of(one.rotated_at)
    output.print_fields(fields)


@command(webhook_app, "deliveries")
def deliveries(
    session: Session,
    webhook: WebhookName,
    agent: OfAgent = None,
    limit: Annotated[int, typer.Option("--limit", min=1, max=500, help="So many at most.")] = 50,
) -> None:
    """List what came, the latest first."""
    found = session.tenure.webhooks.deliveries(webhook, agent, limit=limit)
    if session.json:
        output.print_json({"deliveries": found})
        return
    if not found:
        output.note("Nothing came yet. Try it: tenure webhook test WEBHOOK")
        return
    output.print_table(
        ("ID", "RECEIVED", "SIZE", "TYPE", "SIGNATURE", "SENDER'S ID"),
        [
            (
                one.id,
                time_of(one.received_at),
                output.human_bytes(one.size_bytes),
                one.content_type or "-",
                one.signature,
                one.dedupe or "-",
            )
            for one in found
        ],
    )


@command(webhook_app, "delivery")
def delivery(
    session: Session,
    webhook: WebhookName,
    delivery: Annotated[str, typer.Argument(metavar="DELIVERY", show_default=False, help="Its id: dlv_…")],
    agent: OfAgent = None,
    body: Annotated[bool, typer.Option("--body", help="The body alone, byte for byte.")] = False,
) -> None:
    """Show one delivery: headers and body."""
    one = session.tenure.webhooks.delivery(webhook, delivery, agent)
    raw = base64.b64decode(one.body or "")
    if body:
        sys.stdout.buffer.write(raw)
        return
    if session.json:
        output.print_json(one)
        return
    output.print_fields({name: str(value) for name, value in (one.headers or {}).items()} or {"headers": "none"})
    print()
    print(output.printable(raw.decode("utf-8", "replace")))


@command(webhook_app, "test")
def send_test(session: Session, webhook: WebhookName, agent: OfAgent = None) -> int:
    """Send a webhook a delivery, signed as its sender would."""
    outcome = session.tenure.webhooks.test(webhook, agent).outcome
    told(session, {"outcome": outcome}, f"The delivery was {outcome}.")
    return 0 if outcome in ("stored", "spooled") else 1


@command(webhook_app, "rotate")
def rotate(
    session: Session,
    webhook: WebhookName,
    agent: OfAgent = None,
    secret_stdin: SecretStdin = False,
    address: Annotated[bool, typer.Option("--address", help="A new address, too. The old one ends at once.")] = False,
) -> None:
    """Give a webhook a new secret. The old one is good for a day more."""
    secret = _read_secret() if secret_stdin else None
    made = session.tenure.webhooks.rotate(webhook, agent, secret=secret, address=address)
    if session.json:
        output.print_json(made)
        return
    _print_address(session, made, shown_secret=not secret_stdin)


@command(webhook_app, "delete")
def delete(session: Session, webhook: WebhookName, agent: OfAgent = None) -> None:
    """Delete a webhook. What came stays in the agent's database."""
    session.tenure.webhooks.delete(webhook, agent)
    told(session, {"deleted": webhook}, f"The webhook {webhook} is deleted.")


def register(app: typer.Typer) -> None:
    app.add_typer(webhook_app, name="webhook", rich_help_panel=WORK)
