"""tenure inbox [read]"""

from __future__ import annotations

from typing import Annotated

import typer

from tenure.cli import output
from tenure.cli.command import WORK, command, with_session
from tenure.cli.session import Session

inbox_app = typer.Typer(help="Messages that agents left for you.")


def show_inbox(
    session: Session,
    everything: Annotated[bool, typer.Option("--all", "-a", help="Messages that were read as well.")] = False,
) -> None:
    """List the messages that agents left for you, or read one."""
    if session.subcommand is not None:
        return
    messages = session.tenure.inbox.list(unread=not everything)
    if session.json:
        output.print_json({"messages": messages})
        return
    if not messages:
        output.note("No messages." if everything else "No new messages. Older ones: tenure inbox --all")
        return
    output.print_table(
        ("ID", "FROM", "SUBJECT", "RUN", "WHEN", "READ"),
        [
            [
                message.id,
                message.agent or "-",
                message.subject,
                message.run_id or "-",
                output.human_age(message.created_at),
                "yes" if message.read_at else "no",
            ]
            for message in messages
        ],
    )
    output.note(f"Read one: tenure inbox read {messages[0].id}")


@command(inbox_app, "read")
def read(session: Session, message_id: Annotated[str, typer.Argument(metavar="ID", show_default=False)]) -> None:
    """Show a message and mark it as read."""
    message = session.tenure.inbox.read(message_id)
    if session.json:
        output.print_json(message)
        return
    output.print_fields(
        {
            "from": message.agent or "-",
            "subject": message.subject,
            "run": message.run_id or "-",
            "at": f"{message.created_at:%Y-%m-%d %H:%M:%S}",
        }
    )
    if message.body:
        print(f"\n{output.printable(message.body)}")


def register(app: typer.Typer) -> None:
    inbox_app.callback(invoke_without_command=True)(with_session(show_inbox))
    app.add_typer(inbox_app, name="inbox", rich_help_panel=WORK)
