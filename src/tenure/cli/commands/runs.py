"""tenure run · tenure runs list | show | follow | cancel | resume"""

from __future__ import annotations

import contextlib
import shutil
import sys
from collections.abc import Generator
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tenure.cli import exit_codes, output
from tenure.cli.command import WORK, command
from tenure.cli.commands.agents import AgentName
from tenure.cli.session import Session
from tenure.errors import InvalidArgument

if TYPE_CHECKING:
    from tenure import wire
    from tenure.client.blocking import Run

RunId = Annotated[str, typer.Argument(metavar="RUN", show_default=False, help="The run's id: run_…")]
GOAL_CHARS_SHOWN = 50
LIVE_PER_SECOND = 4

runs_app = typer.Typer(help="List, show, follow, cancel and resume runs.")


def run(
    session: Session,
    agent: AgentName,
    goal: Annotated[str, typer.Argument(metavar="GOAL", show_default=False, help="What is to be reached.")],
    playbook: Annotated[
        Path | None, typer.Option("--playbook", "-p", metavar="FILE", help="The plan to follow (YAML).")
    ] = None,
    inputs: Annotated[
        list[str] | None,
        typer.Option("--input", "-i", metavar="KEY=VALUE", help="A value for the playbook. May be repeated."),
    ] = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Stay until it is at rest.")] = False,
) -> int:
    """Give an agent a goal.

    With --follow the exit code says how the run ended."""
    from tenure.client.views import run_request

    request = run_request(agent, goal, playbook, _pairs(inputs or []))
    _check_playbook(request)
    started = session.tenure.agents(agent).run(goal, playbook=playbook, inputs=request.inputs)
    if not follow:
        if session.json:
            output.print_json(started.info)
        else:
            print(started.id)
            output.note(f"Follow it: tenure runs follow {started.id}")
        return 0
    if session.json:
        started.wait()
        output.print_json(started.info)
    else:
        _follow(started)
    return ending_code(started.state)


def _pairs(inputs: list[str]) -> dict[str, str]:
    pairs: dict[str, str] = {}
    for text in inputs:
        key, equals, value = text.partition("=")
        if not key or not equals:
            raise InvalidArgument(f"{text!r} is not an input.", hint="Write --input key=value.")
        pairs[key] = value
    return pairs


def _check_playbook(request: wire.RunRequest) -> None:
    """The server checks again; here the person sees file, line and field at once, even before a server runs."""
    from tenure.brains.playbook import PlaybookBrain

    PlaybookBrain(request.playbook, request.playbook_name or "playbook").plan(request.goal, request.inputs)


@command(runs_app, "list")
def list_runs(
    session: Session,
    agent: Annotated[str | None, typer.Option("--agent", metavar="AGENT", help="Only this agent's.")] = None,
    state: Annotated[
        str | None,
        typer.Option("--state", help="Only those queued, running, parked, succeeded, failed or cancelled."),
    ] = None,
) -> None:
    """List runs, newest first."""
    from tenure.wire import RunState

    if state is not None and state not in list(RunState):
        raise InvalidArgument(f"{state!r} is not a state of a run.", hint=f"One of: {', '.join(RunState)}.")
    runs = [found.info for found in session.tenure.runs.list(agent=agent, state=state)]
    if session.json:
        output.print_json({"runs": runs})
        return
    if not runs:
        output.note('There are no such runs. Start one: tenure run AGENT "goal" --playbook FILE')
        return
    output.print_table(
        ("RUN", "AGENT", "STATE", "STEPS", "CREATED", "GOAL"), [_row(info) for info in runs], right=("STEPS",)
    )


def _row(info: wire.Run) -> list[str]:
    done = sum(step.state in ("succeeded", "skipped") for step in info.steps)
    goal = info.goal if len(info.goal) <= GOAL_CHARS_SHOWN else info.goal[: GOAL_CHARS_SHOWN - 1] + "…"
    steps = f"{done}/{len(info.steps)}" if info.steps else "-"
    return [info.id, info.agent, info.state, steps, output.human_age(info.created_at), goal]


@command(runs_app, "show")
def show(session: Session, run_id: RunId) -> None:
    """Show a run and its steps as a timeline.

    With attempts, rungs of the recovery ladder, and durations."""
    found = session.tenure.runs.get(run_id).info
    if session.json:
        output.print_json(found)
    else:
        print("\n".join(_picture(found)))


def _picture(found: wire.Run) -> list[str]:
    from tenure.cli.timeline import render

    width = shutil.get_terminal_size((100, 24)).columns
    encoding = (sys.stdout.encoding or "ascii").lower()
    return render(
        found,
        width=width,
        now=datetime.now(UTC),
        paint=output.paint,
        ascii_only="utf" not in encoding,
    )


@command(runs_app, "follow")
def follow_run(session: Session, run_id: RunId) -> int:
    """Show a run while it goes on.

    The exit code says how it ended. With --json: one event of its journal per line, then `{"run": …}`."""
    found = session.tenure.runs.get(run_id)
    if session.json:
        for event in found.events():
            output.print_json_line(event)
        output.print_json_line({"run": output.to_json(found.show())})
    else:
        _follow(found)
    return ending_code(found.state)


def ending_code(state: wire.RunState) -> int:
    """The exit code that a followed run ends with."""
    return {
        "succeeded": 0,
        "failed": exit_codes.RUN_FAILED,
        "parked": exit_codes.RUN_PARKED,
        "cancelled": exit_codes.RUN_CANCELLED,
    }.get(state, 1)


def _follow(found: Run) -> None:
    """A picture that moves on a terminal; lines as they happen elsewhere."""
    from tenure.cli.timeline import changes

    if output.is_terminal(sys.stdout):
        with _moving_picture(found):
            for _ in found.events():
                found.show()
        print("\n".join(_picture(found.show())))
        return
    seen: Any = None
    for _ in found.events():
        now = found.show()
        _print_lines(changes(seen, now, datetime.now(UTC)))
        seen = now
    _print_lines(changes(seen, found.show(), datetime.now(UTC)))


def _print_lines(lines: list[str]) -> None:
    for line in lines:
        print(line, flush=True)


@contextlib.contextmanager
def _moving_picture(found: Run) -> Generator[None]:
    from rich.console import Console
    from rich.live import Live
    from rich.text import Text

    def picture() -> Text:
        return Text.from_ansi("\n".join(_picture(found.info)), no_wrap=True, overflow="crop")

    console = Console(highlight=False)
    with Live(get_renderable=picture, console=console, refresh_per_second=LIVE_PER_SECOND, transient=True):
        yield


@command(runs_app, "cancel")
def cancel(session: Session, run_id: RunId) -> None:
    """Cancel a run.

    What is done stays done; nothing more is begun."""
    found = session.tenure.runs.get(run_id).cancel()
    _tell(session, found)


@command(runs_app, "resume")
def resume(
    session: Session,
    run_id: RunId,
    answer: Annotated[str | None, typer.Option("--answer", "-a", help="The answer to what it asks.")] = None,
) -> None:
    """Go on with a run that is parked, or that failed."""
    found = session.tenure.runs.get(run_id).resume(answer)
    _tell(session, found)


def _tell(session: Session, found: Run) -> None:
    if session.json:
        output.print_json(found.info)
    else:
        print(f"{found.id} is {found.state}.")


def register(app: typer.Typer) -> None:
    command(app, "run", rich_help_panel=WORK)(run)
    app.add_typer(runs_app, name="runs", rich_help_panel=WORK)
