"""tenure sleep | wake"""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

from tenure.cli import output
from tenure.cli.command import AGENTS, command
from tenure.cli.commands.agents import AgentName
from tenure.cli.session import Session

if TYPE_CHECKING:
    from tenure.client.blocking import Agent


def sleep(session: Session, agent: AgentName) -> None:
    """Put an office to sleep.

    Its processes end; files, database and objects stay."""
    _tell(session, session.tenure.agents(agent).sleep())


def wake(session: Session, agent: AgentName) -> None:
    """Wake an office.

    Every command that needs it does so by itself."""
    _tell(session, session.tenure.agents(agent).wake())


def _tell(session: Session, agent: Agent) -> None:
    if session.json:
        output.print_json(agent.info)
    else:
        print(f"{agent.name} is {agent.state}.")


def register(app: typer.Typer) -> None:
    command(app, "sleep", rich_help_panel=AGENTS)(sleep)
    command(app, "wake", rich_help_panel=AGENTS)(wake)
