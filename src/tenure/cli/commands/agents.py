"""tenure agent create | list | show | delete"""

from __future__ import annotations

import re
import sys
from typing import TYPE_CHECKING, Annotated

import typer

from tenure.cli import output
from tenure.cli.command import AGENTS, command
from tenure.cli.session import Session
from tenure.errors import InvalidArgument
from tenure.names import check_name

if TYPE_CHECKING:
    from tenure import wire

AgentName = Annotated[str, typer.Argument(metavar="AGENT", show_default=False, help="The agent's name.")]

_SIZE = re.compile(r"([0-9]+(?:\.[0-9]+)?)\s*([kmgt]?)(?:i?b)?\Z", re.IGNORECASE)
_MIB = {"k": 1 / 1024, "m": 1.0, "g": 1024.0, "t": 1024.0 * 1024}
STATE_STYLES = {"awake": "green", "asleep": "blue", "waking": "yellow", "broken": "red"}

agent_app = typer.Typer(help="Create, list, show and delete agents.")


def size_mib(text: str, *, unit: str, what: str) -> float:
    """MiB of "512", "512m", "2g"; a bare number is in `unit` ("m" or "g"). Raises `InvalidArgument`."""
    found = _SIZE.match(text.strip())
    if found is None:
        raise InvalidArgument(f"{text!r} is not a size for {what}.", hint="Write it like 512m or 2g.")
    return float(found[1]) * _MIB[found[2].lower() or unit]


@command(agent_app, "create")
def create(
    session: Session,
    name: AgentName,
    cpus: Annotated[float | None, typer.Option(help="CPUs that it may use at a time.", show_default=False)] = None,
    memory: Annotated[
        str | None, typer.Option("--memory", metavar="SIZE", help="Memory: 512m, 2g; a bare number is MiB.")
    ] = None,
    disk: Annotated[
        str | None, typer.Option("--disk", metavar="SIZE", help="Disk: 500m, 10g; a bare number is GiB.")
    ] = None,
    processes: Annotated[int | None, typer.Option(help="Processes at a time.", show_default=False)] = None,
    egress: Annotated[
        list[str] | None,
        typer.Option(
            "--egress",
            metavar="PRESET|DOMAIN",
            help="What it may reach: pip, npm, apt, or a domain. May be repeated, or separated by commas. Default: nothing.",
        ),
    ] = None,
) -> None:
    """Create an agent and its office."""
    check_name(name)
    memory_mib = None if memory is None else size_mib(memory, unit="m", what="memory")
    disk_mib = None if disk is None else size_mib(disk, unit="g", what="a disk")
    allowed = [item.strip() for text in egress or [] for item in text.split(",") if item.strip()]
    agent = session.tenure.agents.create(
        name,
        cpus=cpus,
        memory_mb=None if memory_mib is None else round(memory_mib),
        disk_gb=None if disk_mib is None else disk_mib / 1024,
        processes=processes,
        egress=allowed,
    )
    if session.json:
        output.print_json(agent.info)
    else:
        print(f"{agent.name} is {agent.state}.")
        output.note(f"Try: tenure exec {name} -- uname -a")


@command(agent_app, "list")
def list_agents(session: Session) -> None:
    """List all agents."""
    agents = [agent.info for agent in session.tenure.agents.list() if agent.info]
    if session.json:
        output.print_json({"agents": agents})
        return
    if not agents:
        output.note("There are no agents. Make one: tenure agent create NAME")
        return
    output.print_table(
        ("NAME", "STATE", "CPUS", "MEMORY", "DISK", "EGRESS", "CREATED"),
        [_row(agent) for agent in agents],
        right=("CPUS", "MEMORY", "DISK"),
    )


def _row(agent: wire.Agent) -> list[str]:
    used = output.human_bytes(agent.usage.disk_bytes) if agent.usage and agent.usage.disk_bytes is not None else "-"
    return [
        agent.name,
        agent.state,
        f"{agent.limits.cpus:g}",
        f"{agent.limits.memory_mb} MiB",
        f"{used} of {agent.limits.disk_gb:g} GiB",
        ", ".join(agent.egress) or "nothing",
        output.human_age(agent.created_at),
    ]


@command(agent_app, "show")
def show(session: Session, name: AgentName) -> None:
    """Show an agent: its state, its limits, what it uses."""
    agent = session.tenure.agents.get(name).info
    assert agent is not None
    if session.json:
        output.print_json(agent)
        return
    usage, limits = agent.usage, agent.limits
    memory = output.human_bytes(usage.memory_bytes) if usage else "-"
    disk = output.human_bytes(usage.disk_bytes) if usage else "-"
    output.print_fields(
        {
            "name": agent.name,
            "state": agent.state,
            "created": f"{agent.created_at:%Y-%m-%d %H:%M:%S} ({output.human_age(agent.created_at)})",
            "image": agent.image,
            "hostname": agent.hostname,
            "cpus": f"{limits.cpus:g}",
            "memory": f"{memory} of {limits.memory_mb} MiB",
            "disk": f"{disk} of {limits.disk_gb:g} GiB",
            "processes": f"{limits.processes} at most",
            "egress": ", ".join(agent.egress) or "nothing",
        }
    )


@command(agent_app, "delete")
def delete(
    session: Session,
    name: AgentName,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
) -> int:
    """Delete an agent with everything it owns.

    Files, database, objects. Cannot be undone."""
    check_name(name)
    if not yes and not _confirmed(session, name):
        output.note("Nothing was deleted.")
        return 1
    session.tenure.agents(name).delete()
    if session.json:
        output.print_json({"deleted": name})
    else:
        print(f"{name} is deleted.")
    return 0


def _confirmed(session: Session, name: str) -> bool:
    if session.json or not output.is_terminal(sys.stdin):
        raise InvalidArgument(
            f"Deleting {name} cannot be undone, and nobody is there to confirm it.",
            hint=f"Say it on the command line: tenure agent delete {name} --yes",
        )
    session.tenure.agents.get(name)  # A name that does not exist should not be asked about.
    return typer.confirm(f"Delete {name} with its files, database and objects?", err=True)


def register(app: typer.Typer) -> None:
    app.add_typer(agent_app, name="agent", rich_help_panel=AGENTS)
