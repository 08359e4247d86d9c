"""tenure run · tenure runs list | show | follow | cancel | resume | fork"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tenure.cli import following, output
from tenure.cli.command import WORK, command
from tenure.cli.commands.agents import AgentName
from tenure.cli.session import Session
from tenure.errors import InvalidArgument, NotFound
from tenure.names import check_name

if TYPE_CHECKING:
    from tenure import wire
    from tenure.client.blocking import Run

RunId = Annotated[str, typer.Argument(metavar="RUN", show_default=False, help="The run's id: run_…")]
GOAL_CHARS_SHOWN = 50

runs_app = typer.Typer(help="List, show, follow, cancel, resume and fork runs.")


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
    checks: Annotated[
        list[str] | None,
        typer.Option(
            "--check",
            metavar="CHECK",
            help="What has to hold in the end: 'run: SCRIPT', 'sql: QUERY', 'file: PATH' or 'http: URL'. May be repeated.",
        ),
    ] = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Stay until it is at rest.")] = False,
) -> int:
    """Give an agent a goal.

    Without a playbook the agent's brain finds the way (`tenure brain set`). With --follow the exit code says how the run
    ended."""
    from tenure.client.views import run_request

    accept = checks_of(checks or [])
    if playbook is not None and accept:
        raise InvalidArgument(
            "A run by a playbook is judged by the playbook's own checks.", hint="Write them as `verify` of its steps."
        )
    request = run_request(agent, goal, playbook, pairs_of(inputs or []), accept)
    if playbook is not None:
        _check_playbook(request)
    started = session.tenure.agents(agent).run(goal, playbook=playbook, inputs=request.inputs, checks=accept)
    if not follow:
        if session.json:
            output.print_json(started.info)
        else:
            print(started.id)
            output.note(f"Follow it: tenure runs follow {started.id}")
        return 0
    return _followed(session, started)


def _followed(session: Session, started: Run) -> int:
    """Stays with a run to its end; the exit code says how it ended."""
    if session.json:
        started.wait()
        output.print_json(started.info)
    else:
        following.follow(started)
    return following.ending_code(started.state)


def pairs_of(inputs: list[str]) -> dict[str, str]:
    pairs: dict[str, str] = {}
    for text in inputs:
        key, equals, value = text.partition("=")
        if not key or not equals:
            raise InvalidArgument(f"{text!r} is not an input.", hint="Write --input key=value.")
        pairs[key] = value
    return pairs


def checks_of(texts: list[str]) -> list[wire.RunCheck]:
    from tenure import wire
    from tenure.client.views import refusing

    checks: list[wire.RunCheck] = []
    for text in texts:
        kind, colon, value = text.partition(":")
        if kind.strip() not in ("run", "sql", "file", "http") or not colon or not value.strip():
            raise InvalidArgument(
                f"{text!r} is no check.", hint="Write --check 'run: SCRIPT', 'sql: QUERY', 'file: PATH' or 'http: URL'."
            )
        with refusing():
            checks.append(wire.RunCheck.model_validate({kind.strip(): value.strip()}))
    return checks


def _check_playbook(request: wire.RunRequest) -> None:
    """The server checks again; here the person sees file, line and field at once, even before a server runs."""
    from tenure.brains.playbook import PlaybookBrain

    PlaybookBrain(request.playbook or "", request.playbook_name or "playbook").plan(request.goal, request.inputs)


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
def show(
    session: Session,
    run_id: RunId,
    step: Annotated[
        str | None, typer.Option("--step", "-s", metavar="STEP", help="Show all that was done for this step.")
    ] = None,
    full: Annotated[
        bool, typer.Option("--full", help="Also what went smoothly, and all texts whole instead of their beginnings.")
    ] = False,
) -> None:
    """Show a run: its steps as a timeline, and its story.

    The story tells from the run's journal what was tried, why, with what result and at what cost: plans, thoughts, tool calls,
    checks, failures, rungs of the recovery ladder, questions and who answered them."""
    found = session.tenure.runs.get(run_id)
    if step is not None:
        _show_step(session, found, step)
    elif session.json:
        from tenure.cli.story import story_of

        story = [entry.to_json() for entry in story_of(found.journal()).entries]
        output.print_json({**output.to_json(found.info), "story": story})
    else:
        lines = following.picture(found.info, following.said(found))
        if story := following.told(found, full=full):
            lines += ["", *story]
        print("\n".join(lines))


def _show_step(session: Session, found: Run, step: str) -> None:
    from tenure.cli.attempts import ATTEMPT_KINDS, attempts_of, render_attempts
    from tenure.cli.story import story_of

    events = found.journal()  # knows also those that another plan left out
    names = list(dict.fromkeys([*(one.id for one in found.steps), *(event.step for event in events if event.step)]))
    chosen = [name for name in names if name == step or name.startswith(f"{step}[")]  # all values of a for_each
    if not chosen:
        raise NotFound(f"{found.id} has no step {step!r}.", hint=f"Its steps: {', '.join(names) or 'none yet'}.")
    by_step = attempts_of(events)
    attempts = [attempt for name in chosen for attempt in by_step.get(name, [])]
    if session.json:
        story = [entry.to_json() for entry in story_of(events).entries if entry.step in chosen]
        output.print_json({"run": found.id, "attempts": [attempt.to_json() for attempt in attempts], "story": story})
    elif any(event.kind == "thinking" and event.step in chosen for event in events):
        print("\n".join(following.told(found, full=True, steps=chosen)))
    elif attempts:
        print("\n".join(render_attempts(attempts, output.paint)))
        rest = [event for event in events if event.kind not in ATTEMPT_KINDS]
        if story := following.told_of(rest, full=True, steps=chosen):
            print("\n".join(["", *story]))
    else:
        output.note(f"{step} has not begun.")


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
        following.follow(found)
    return following.ending_code(found.state)


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
    answer: Annotated[
        str | None,
        typer.Option(
            "--answer", "-a", help="retry (default), skip, accept, fail; or a text: retry with it as TENURE_ANSWER."
        ),
    ] = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Stay until it is at rest.")] = False,
) -> int:
    """Answer a parked run, which then goes on.

    With --follow the exit code says how it ended."""
    found = session.tenure.runs.get(run_id).resume(answer)
    if follow:
        return _followed(session, found)
    _tell(session, found)
    if not session.json:
        output.note(f"Follow it: tenure runs follow {found.id}")
    return 0


@command(runs_app, "fork")
def fork(
    session: Session,
    run_id: RunId,
    new: Annotated[str, typer.Argument(metavar="NEW", show_default=False, help="The name of the new agent.")],
    at: Annotated[
        str, typer.Option("--at", metavar="STEP", show_default=False, help="The step at whose moment to go on.")
    ],
    before: Annotated[
        bool | None,
        typer.Option(
            "--before/--after", help="Before the step or after it; else after it, if there is a snapshot of that."
        ),
    ] = None,
    playbook: Annotated[
        Path | None,
        typer.Option("--playbook", "-p", metavar="FILE", help="What to do from there on, instead of the same."),
    ] = None,
    inputs: Annotated[
        list[str] | None,
        typer.Option("--input", "-i", metavar="KEY=VALUE", help="A value for that playbook. May be repeated."),
    ] = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Stay until it is at rest.")] = False,
) -> int:
    """Go on with a run from a step, in a new agent.

    Its office and its journal are as they were at that moment; the run that it comes from stays as it is. What is
    finished by then must be the same in another playbook. Steps that were under way go on as after a crash."""
    check_name(new)
    forked = session.tenure.runs.get(run_id).fork(
        at, new, before=before, playbook=playbook, inputs=pairs_of(inputs or []) or None
    )
    if follow:
        return _followed(session, forked)
    if session.json:
        output.print_json(forked.info)
    else:
        print(forked.id)
        output.note(f"It is of the agent {new}. Follow it: tenure runs follow {forked.id}")
    return 0


def _tell(session: Session, found: Run) -> None:
    if session.json:
        output.print_json(found.info)
    else:
        print(f"{found.id} is {found.state}.")


def register(app: typer.Typer) -> None:
    command(app, "run", rich_help_panel=WORK)(run)
    app.add_typer(runs_app, name="runs", rich_help_panel=WORK)
