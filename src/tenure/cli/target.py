"""Which database a command is about: an agent's own, or a shared one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, TypeVar

import typer

from tenure.cli.session import Session
from tenure.errors import NotFound

PREFIX = "db:"

T = TypeVar("T")

Target = Annotated[
    str,
    typer.Argument(
        metavar="AGENT|DB",
        show_default=False,
        help="An agent, for its own database; or a shared database (also db:NAME).",
    ),
]


def asked(session: Session, target: str, ask: Callable[[str], T]) -> T:
    """What `ask` says of the place of the target. A name that is an agent's and a database's is the agent's. Raises as `ask`."""
    from tenure.client import calls, data_calls

    if target.startswith(PREFIX):
        return ask(data_calls.of_database(target.removeprefix(PREFIX)))
    try:
        return ask(data_calls.of_agent(target))
    except NotFound:
        try:
            session.tenure.transport.send(calls.get_agent(target))
        except NotFound as nobody:
            try:
                return ask(data_calls.of_database(target))
            except NotFound as nothing:
                if "no shared database" in nothing.message:
                    raise nobody from None
                raise
        raise
