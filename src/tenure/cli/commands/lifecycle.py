"""tenure sleep | wake | rest | keep-awake"""

from __future__ import annotations

import re
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from tenure.cli import output
from tenure.cli.command import AGENTS, command
from tenure.cli.commands.agents import AgentName
from tenure.cli.session import Session
from tenure.errors import InvalidArgument

if TYPE_CHECKING:
    from tenure.client.blocking import Agent


class Tier(StrEnum):
    PAUSED = "paused"
    HIBERNATED = "hibernated"
    STOPPED = "stopped"


def sleep(
    session: Session,
    agent: AgentName,
    tier: Annotated[
        Tier,
        typer.Option(
            help="paused: its processes are frozen in memory. hibernated: they lie on disk and go on when it wakes. "
            "stopped: they end."
        ),
    ] = Tier.STOPPED,
) -> None:
    """Put an office to sleep.

    Files, database and objects stay. Any use wakes it. See `tenure rest` for when it sleeps by itself."""
    _tell(session, session.tenure.agents(agent).sleep(tier))


def rest(
    session: Session,
    agent: AgentName,
    pause_after: Annotated[str | None, typer.Option(metavar="TIME", help="E.g. 5m; never.")] = None,
    hibernate_after: Annotated[str | None, typer.Option(metavar="TIME", help="E.g. 30m; never.")] = None,
    stop_after: Annotated[str | None, typer.Option(metavar="TIME", help="E.g. 7d; never.")] = None,
    default: Annotated[bool, typer.Option("--default", help="As the server is set up.")] = False,
) -> None:
    """Show or set when an idle office sinks to each tier of sleep.

    Idle is an office in which no command runs, through whose forwards nothing is asked, and which computes nothing."""
    handle = session.tenure.agents(agent)
    given = {
        "pause_after_s": pause_after,
        "hibernate_after_s": hibernate_after,
        "stop_after_s": stop_after,
    }
    if default and any(given.values()):
        raise InvalidArgument("--default goes alone.")
    before = handle.show()
    if default:
        handle.rest()
    elif any(given.values()):
        kept = {name: getattr(before.rest, name) or 0.0 for name in given}
        handle.rest(**kept | {name: period_s(text) for name, text in given.items() if text})
    now = handle.show() if any(given.values()) or default else before
    if session.json:
        output.print_json(now)
        return
    assert now.rest is not None
    fields = {
        "paused after": _period(now.rest.pause_after_s),
        "hibernated after": _period(now.rest.hibernate_after_s),
        "stopped after": _period(now.rest.stop_after_s),
        "idle": "-" if now.idle_s is None else _period(now.idle_s),
    }
    if now.lease is not None:
        fields["kept awake until"] = f"{now.lease.until:%Y-%m-%d %H:%M:%S} ({now.lease.reason or 'no reason given'})"
    output.print_fields(fields)


def keep_awake(
    session: Session,
    agent: AgentName,
    time: Annotated[str, typer.Argument(metavar="TIME", help="E.g. 2h; 0 ends it.", show_default=False)],
    reason: Annotated[str, typer.Option(help="Shown by `tenure rest AGENT`.")] = "",
) -> None:
    """Keep an office awake for a while, though nobody uses it.

    For work that Tenure cannot see, such as a timer inside. The agent itself can do so, too: PUT /v1/agents/AGENT/lease
    at http://api:8700."""
    handle = session.tenure.agents(agent).keep_awake(period_s(time), reason)
    if session.json:
        output.print_json(handle.info)
    elif handle.info and handle.info.lease:
        print(f"{agent} stays awake until {handle.info.lease.until:%Y-%m-%d %H:%M:%S %Z}.")
    else:
        print(f"{agent} sleeps again when it is idle.")


_PERIOD = re.compile(r"([0-9]+(?:\.[0-9]+)?)\s*([smhd]?)\Z")
_UNITS_S = {"": 1.0, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0}


def period_s(text: str) -> float:
    """Seconds of "90", "5m", "2h", "7d"; 0 of "never"."""
    if text == "never":
        return 0.0
    found = _PERIOD.match(text.strip())
    if found is None:
        raise InvalidArgument(f"{text!r} is no length of time.", hint="Write it like 30s, 5m, 2h, 7d, or: never.")
    return float(found[1]) * _UNITS_S[found[2]]


def _period(seconds: float | None) -> str:
    if seconds is None:
        return "never"
    for unit, length_s in (("d", 86_400.0), ("h", 3600.0), ("m", 60.0)):
        if seconds >= length_s and seconds % length_s == 0:
            return f"{seconds / length_s:g}{unit}"
    return f"{seconds:.0f}s"


def wake(session: Session, agent: AgentName) -> None:
    """Wake an office.

    Every command that needs it does so by itself."""
    _tell(session, session.tenure.agents(agent).wake())


def rebuild(session: Session, agent: AgentName) -> None:
    """Give an office a new root from the image.

    Home directories, database and objects stay; what was installed is installed again. Configuration outside of the home
    directories does not stay. What is there now becomes a snapshot first, so this can be undone. What runs in it ends."""
    done = session.tenure.agents(agent).rebuild()
    if session.json:
        output.print_json(done)
        return
    print(f"{agent} has a new root ({done.agent.state}).")
    installed = [
        *done.set_up.packages,
        *done.set_up.pip,
        *(["~/.config/tenure/setup.sh"] if done.set_up.script else []),
    ]
    if installed:
        print(f"Installed again in the background: {', '.join(installed)}")
        output.note(f"How that ended: tenure agent history {agent}")
    print(f"To undo: tenure snapshot restore {agent} {done.before.id}")


def _tell(session: Session, agent: Agent) -> None:
    if session.json:
        output.print_json(agent.info)
    else:
        print(f"{agent.name} is {agent.state}.")


def register(app: typer.Typer) -> None:
    command(app, "sleep", rich_help_panel=AGENTS)(sleep)
    command(app, "wake", rich_help_panel=AGENTS)(wake)
    command(app, "rebuild", rich_help_panel=AGENTS)(rebuild)
    command(app, "rest", rich_help_panel=AGENTS)(rest)
    command(app, "keep-awake", rich_help_panel=AGENTS)(keep_awake)
