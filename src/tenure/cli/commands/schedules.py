"""tenure schedule create | list | show | pause | resume | run | delete"""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tenure.cli import output
from tenure.cli.command import WORK, command
from tenure.cli.commands.agents import AgentName
from tenure.cli.commands.runs import checks_of, pairs_of
from tenure.cli.session import Session
from tenure.errors import InvalidArgument

if TYPE_CHECKING:
    from tenure.wire.triggers import Firing, Schedule

ScheduleName = Annotated[
    str, typer.Argument(metavar="SCHEDULE", show_default=False, help="The schedule's name, or its id: sch_…")
]
OfAgent = Annotated[
    str | None,
    typer.Option("--agent", metavar="AGENT", show_default=False, help="Where several agents have one of that name."),
]
HISTORY_SHOWN = 20
GOAL_CHARS_SHOWN = 50

schedule_app = typer.Typer(help="Have goals begun at times of their own.")


@command(schedule_app, "create")
def create(
    session: Session,
    name: Annotated[str, typer.Argument(metavar="NAME", show_default=False, help="The schedule's name.")],
    agent: AgentName,
    goal: Annotated[str, typer.Option("--goal", metavar="GOAL", show_default=False, help="What is to be reached.")],
    cron: Annotated[
        str | None,
        typer.Option("--cron", metavar="'M H D M W'", show_default=False, help="Five fields, like '0 3 * * 1-5'."),
    ] = None,
    tz: Annotated[str, typer.Option("--tz", metavar="ZONE", help="Time zone of --cron, like Europe/Berlin.")] = "UTC",
    every: Annotated[
        str | None,
        typer.Option("--every", metavar="INTERVAL", show_default=False, help="15m, 2h, 1d: counted from now."),
    ] = None,
    at: Annotated[
        str | None,
        typer.Option("--at", metavar="TIME", show_default=False, help="Once, like 2026-11-23T03:00Z."),
    ] = None,
    playbook: Annotated[
        Path | None,
        typer.Option("--playbook", "-p", metavar="FILE", show_default=False, help="The plan to follow (YAML)."),
    ] = None,
    inputs: Annotated[
        list[str] | None,
        typer.Option(
            "--input", "-i", metavar="KEY=VALUE", show_default=False, help="A value for the playbook. May be repeated."
        ),
    ] = None,
    accept: Annotated[
        list[str] | None,
        typer.Option(
            "--accept",
            metavar="CHECK",
            show_default=False,
            help="What has to hold in the end: 'run: SCRIPT', 'sql: QUERY', 'file: PATH' or 'http: URL'. May be repeated.",
        ),
    ] = None,
    missed: Annotated[
        str,
        typer.Option("--missed", metavar="one|all|none", help="Which due times are made up for after a standstill."),
    ] = "one",
    overlap: Annotated[
        str,
        typer.Option("--overlap", metavar="skip|queue|allow", help="What if the last run is not over by then."),
    ] = "skip",
    jitter: Annotated[
        str, typer.Option("--jitter", metavar="INTERVAL", help="Begin up to so much later, spread evenly.")
    ] = "0s",
    failures: Annotated[
        int, typer.Option("--failures", min=1, max=100, help="Pause it after so many in a row that cannot be begun.")
    ] = 5,
) -> None:
    """Have an agent begin a goal by cron, every so often, or once.

    The office may sleep meanwhile; a run wakes it. Exactly one of --cron, --every and --at says when."""
    from tenure.wire.intervals import seconds_of

    made = session.tenure.schedules.create(
        name,
        agent,
        goal,
        cron=cron,
        tz=tz,
        every=every,
        at=None if at is None else moment_of(at),
        playbook=playbook,
        inputs=pairs_of(inputs or []),
        checks=checks_of(accept or []),
        missed=missed,
        overlap=overlap,
        jitter_s=seconds_of(jitter),
        failures_max=failures,
    )
    if session.json:
        output.print_json(made)
        return
    print(made.id)
    output.note(f"{name} is due {_when(made)}; next at {time_of(made.next_at)}.")


def moment_of(text: str) -> datetime:
    """An instant; without a time zone it is UTC. Raises `InvalidArgument`."""
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        raise InvalidArgument(f"{text!r} is no time.", hint="Write it like 2026-11-23T03:00Z.") from None
    return found if found.tzinfo else found.replace(tzinfo=UTC)


@command(schedule_app, "list")
def list_schedules(
    session: Session,
    agent: Annotated[
        str | None, typer.Option("--agent", metavar="AGENT", show_default=False, help="Only this agent's.")
    ] = None,
) -> None:
    """List schedules, by agent and name."""
    found = session.tenure.schedules.list(agent)
    if session.json:
        output.print_json({"schedules": found})
        return
    if not found:
        output.note("There are no schedules. Make one: tenure schedule create NAME AGENT --every 1h --goal TEXT")
        return
    output.print_table(
        ("ID", "NAME", "AGENT", "WHEN", "STATE", "NEXT", "WHAT"),
        [
            (one.id, one.name, one.agent, _when(one), one.state, time_of(one.next_at), _what(one)[:GOAL_CHARS_SHOWN])
            for one in found
        ],
    )


@command(schedule_app, "show")
def show(session: Session, schedule: ScheduleName, agent: OfAgent = None) -> None:
    """Show a schedule: its next five times, and what became of the last ones."""
    one = session.tenure.schedules.get(schedule, agent)
    firings = session.tenure.schedules.firings(one.id, limit=HISTORY_SHOWN)
    if session.json:
        output.print_json({"schedule": one, "firings": firings})
        return
    output.print_fields(_fields(one))
    if firings:
        print()
        output.print_table(
            ("DUE", "STATE", "BEGAN", ""), [(time_of(f.due_at), f.state, f.began or "-", _note_of(f)) for f in firings]
        )


def _fields(one: Schedule) -> dict[str, str]:
    fields = {
        "id": one.id,
        "name": one.name,
        "agent": one.agent,
        "when": _when(one),
        "what": _what(one),
        "state": f"{one.state}: {one.reason}" if one.reason else one.state,
        "missed": one.missed,
        "overlap": one.overlap,
        "made by": one.created_by,
    }
    if one.jitter_s:
        fields["jitter"] = output.human_duration(one.jitter_s)
    if one.failures:
        fields["failures"] = f"{one.failures} in a row (pauses at {one.failures_max})"
    for number, at in enumerate(one.next_times):
        fields["next" if number == 0 else " " * number] = time_of(at)
    return fields


def _note_of(firing: Firing) -> str:
    notes = [firing.told] if firing.told else []
    if firing.manual:
        notes.append("by hand")
    if firing.missed_since:
        notes.append(f"for all since {time_of(firing.missed_since)}")
    return "; ".join(notes)


def _when(one: Schedule) -> str:
    from tenure.wire.intervals import interval_of

    if one.cron:
        return one.cron if one.tz == "UTC" else f"{one.cron} {one.tz}"
    return f"every {interval_of(one.every_s)}" if one.every_s else f"once at {time_of(one.at)}"


def _what(one: Schedule) -> str:
    return str(one.what.get("goal") or f"{one.kind} {next(iter(one.what.values()), '')}").strip()


def time_of(at: datetime | None) -> str:
    return "-" if at is None else f"{at.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC"


@command(schedule_app, "pause")
def pause(session: Session, schedule: ScheduleName, agent: OfAgent = None) -> None:
    """Begin nothing of a schedule until it is resumed. What was begun goes on."""
    one = session.tenure.schedules.pause(schedule, agent)
    told(session, one, f"{one.name} is paused.")


@command(schedule_app, "resume")
def resume(session: Session, schedule: ScheduleName, agent: OfAgent = None) -> None:
    """Let a paused schedule go on. Due times of the pause are not made up for."""
    one = session.tenure.schedules.resume(schedule, agent)
    told(session, one, f"{one.name} goes on; next at {time_of(one.next_at)}.")


@command(schedule_app, "run")
def run(session: Session, schedule: ScheduleName, agent: OfAgent = None) -> int:
    """Begin it now, whatever goes on. Its due times stay as they are."""
    firing = session.tenure.schedules.run(schedule, agent)
    told(session, firing, firing.began or f"It could not be begun: {firing.told}")
    return 0 if firing.began else 1


@command(schedule_app, "delete")
def delete(session: Session, schedule: ScheduleName, agent: OfAgent = None) -> None:
    """Delete a schedule and its history. What it began goes on."""
    session.tenure.schedules.delete(schedule, agent)
    told(session, {"deleted": schedule}, f"The schedule {schedule} is deleted.")


def told(session: Session, value: Any, text: str) -> None:
    if session.json:
        output.print_json(value)
    else:
        print(output.printable(text))


def register(app: typer.Typer) -> None:
    app.add_typer(schedule_app, name="schedule", rich_help_panel=WORK)
