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
MEMORY_MIB, DISK_MIB = (128, 1024 * 1024), (128, 64 * 1024 * 1024)
"""Least and most, as `wire.AgentRequest` has them."""
CPUS_MAX = 256
PROCESSES = (32, 1_000_000)
STATE_STYLES = {
    "awake": "green",
    "paused": "cyan",
    "hibernated": "blue",
    "stopped": "blue",
    "archived": "magenta",
    "waking": "yellow",
    "broken": "red",
}

agent_app = typer.Typer(help="Create, list, show and delete agents.")


def size_mib(text: str, *, unit: str, what: str) -> float:
    """MiB of "512", "512m", "2g"; a bare number is in `unit` ("m" or "g"). Raises `InvalidArgument`."""
    found = _SIZE.match(text.strip())
    if found is None:
        raise InvalidArgument(f"{text!r} is not a size for {what}.", hint="Write it like 512m or 2g.")
    return float(found[1]) * _MIB[found[2].lower() or unit]


def _within(limits_mib: tuple[int, int], option: str, mib: float) -> float:
    """`mib`, which was given by `option`. Raises `InvalidArgument` in the words of the command line."""
    least, most = limits_mib
    if not least <= mib <= most:
        raise InvalidArgument(f"{option} is out of range: {least} MiB to {most // 1024} GiB are possible.")
    return mib


@command(agent_app, "create")
def create(
    session: Session,
    name: AgentName,
    cpus: Annotated[
        float | None,
        typer.Option(
            min=0.01, max=CPUS_MAX, show_default=False, help="CPUs that it may use at a time: 0.5 is half of one."
        ),
    ] = None,
    memory: Annotated[
        str | None, typer.Option("--memory", metavar="SIZE", help="Memory: 512m, 2g; a bare number is MiB.")
    ] = None,
    disk: Annotated[
        str | None, typer.Option("--disk", metavar="SIZE", help="Disk: 500m, 10g; a bare number is GiB.")
    ] = None,
    processes: Annotated[
        int | None,
        typer.Option(min=PROCESSES[0], max=PROCESSES[1], show_default=False, help="Processes and threads at a time."),
    ] = None,
    egress: Annotated[
        list[str] | None,
        typer.Option(
            "--egress",
            metavar="PRESET|DOMAIN",
            help="What it may reach: pip, npm, apt, or a domain. May be repeated, or separated by commas. Default: nothing.",
        ),
    ] = None,
    asleep: Annotated[bool, typer.Option("--asleep", help="Do not wake its office; its first use does.")] = False,
) -> None:
    """Create an agent and its office."""
    check_name(name)
    memory_mib = (
        None if memory is None else _within(MEMORY_MIB, f"--memory {memory}", size_mib(memory, unit="m", what="memory"))
    )
    disk_mib = None if disk is None else _within(DISK_MIB, f"--disk {disk}", size_mib(disk, unit="g", what="a disk"))
    allowed = [item.strip() for text in egress or [] for item in text.split(",") if item.strip()]
    agent = session.tenure.agents.create(
        name,
        cpus=cpus,
        memory_mb=None if memory_mib is None else round(memory_mib),
        disk_gb=None if disk_mib is None else disk_mib / 1024,
        processes=processes,
        egress=allowed,
        asleep=asleep,
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
    disk = f"{agent.limits.disk_gb:g} GiB"
    if agent.usage and agent.usage.disk_bytes is not None:
        disk = f"{output.human_bytes(agent.usage.disk_bytes)} of {disk}"
    return [
        agent.name,
        agent.state,
        f"{agent.limits.cpus:g}",
        f"{agent.limits.memory_mb} MiB",
        disk,
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
    output.print_fields(
        {
            "name": agent.name,
            "state": agent.state,
            **({"lies in": agent.archived.destination} if agent.archived else {}),
            "created": f"{agent.created_at:%Y-%m-%d %H:%M:%S} ({output.human_age(agent.created_at)})",
            "image": agent.image,
            "hostname": agent.hostname,
            "cpus": f"{limits.cpus:g}",
            "memory": _of(output.human_bytes(usage.memory_bytes) if usage else "-", f"{limits.memory_mb} MiB"),
            "disk": _of(output.human_bytes(usage.disk_bytes) if usage else "-", f"{limits.disk_gb:g} GiB"),
            "processes": _of(str(usage.processes or "-") if usage else "-", str(limits.processes)),
            "egress": ", ".join(agent.egress) or "nothing",
        }
    )


@command(agent_app, "history")
def history(
    session: Session,
    name: AgentName,
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, max=500, help="How many events at most.")] = 100,
) -> None:
    """Show what was decided about an office and why, the oldest first.

    Boots that failed, repairs, restarts. With --json each has its evidence."""
    events = session.tenure.agents(name).history(limit)[::-1]
    if session.json:
        output.print_json({"events": events})
        return
    if not events:
        output.note(f"Nothing had to be decided about the office of {name} yet.")
        return
    output.print_table(
        ("AT", "WHAT", "REASON"), [(f"{event.at:%Y-%m-%d %H:%M:%S}", event.what, event.reason) for event in events]
    )


def _of(used: str, limit: str) -> str:
    return f"{limit} at most" if used == "-" else f"{used} of {limit}"


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
    try:
        return typer.confirm(f"Delete {name} with its files, database and objects?", err=True)
    except (typer.Abort, KeyboardInterrupt):  # the latter when it comes just before the question is read
        print(file=sys.stderr)  # the terminal's line has the question and ^C
        return False


def register(app: typer.Typer) -> None:
    app.add_typer(agent_app, name="agent", rich_help_panel=AGENTS)
