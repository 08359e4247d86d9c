"""`tenure demo`: a real job on real data, killed in the middle, that is finished all the same."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import sys
import time
from collections.abc import Iterator
from importlib import resources
from pathlib import Path

from rich.console import Console
from rich.markdown import Markdown
from rich.panel import Panel
from rich.rule import Rule

from tenure import Tenure, wire
from tenure.client import Agent, Run
from tenure.errors import InternalError, NotFound, ServerUnreachable
from tenure.server import daemon
from tenure.settings import Settings

GOAL = "find the anomalous days in Seattle's weather and report them"
AGENT = "analyst"
PARALLEL_STEP = "score"
REPORT_LINES_SHOWN = 24
KILL_WAIT_S = 600.0
RUN_WAIT_S = 1800.0
POLL_S = 0.2
DEATH_WAIT_S = 10.0


def playbook_text() -> str:
    """The demo's playbook, as installed with the package."""
    return resources.files("tenure.brains.playbook").joinpath("seattle-weather.yaml").read_text(encoding="utf-8")


def run_demo(settings: Settings, console: Console) -> None:
    """Everything from a stopped server to the report. Raises `TenureError`; leaves server and office for a closer look."""
    began = time.monotonic()
    console.print(Panel.fit(f"[bold]Tenure demo[/bold]\nThe agent [cyan]{AGENT}[/cyan] gets a goal:\n“{GOAL}”"))
    _say(console, "Starting the server")
    daemon.up(settings, foreground=False)
    with Tenure(settings) as tenure:
        agent = _fresh_agent(tenure, console)
        run = agent.run(GOAL, playbook=playbook_text())
        _say(console, f"The agent works: {run.id}")
        told = _Told(console)
        _until_mid_parallel(run, told)
        finished_before = {step.id for step in run.show().steps if step.state is wire.StepState.SUCCEEDED}
        _pull_the_plug(tenure, console)
        _say(console, "Starting the server again; the run goes on from its journal")
        before = time.monotonic()
        daemon.up(settings, foreground=False)
        console.print(f"  up again in {time.monotonic() - before:.1f} s")
        _until_rest(run, told)
        _check_nothing_ran_twice(run, finished_before, console)
        _sleep_and_wake(agent, console)
        _show_result(agent, run, console)
    console.print(Rule(f"done in {time.monotonic() - began:.0f} s"))
    console.print(_what_next(run), highlight=False)


def _what_next(run: Run) -> str:
    commands = {
        f"tenure shell {AGENT}": "a terminal in the office",
        f"tenure sql {AGENT}": "its database",
        f"tenure runs show {run.id}": "the run",
        "tenure inbox": "what it wrote to you",
        "tenure down": "stops the server; office and work stay",
    }
    lines = [f"  [bold]{command:<34}[/bold] {what}" for command, what in commands.items()]
    if shutil.which("tenure") is None:
        lines.insert(0, f"  [bold]{f'source {_activate()}':<34}[/bold] puts the command tenure on your PATH")
    return "\n".join(("Look around:", *lines))


def _activate() -> str:
    """The script that puts this installation's commands on the PATH, as short as it can be typed from here."""
    script = Path(sys.prefix) / "bin" / "activate"
    return os.path.relpath(script) if script.is_relative_to(Path.cwd()) else str(script)


def _say(console: Console, text: str) -> None:
    console.print(Rule(f"[bold]{text}[/bold]", align="left"))


def _fresh_agent(tenure: Tenure, console: Console) -> Agent:
    """The demo's agent, new. One that an earlier demo left is replaced; one that did anything else is not touched."""
    with contextlib.suppress(NotFound):
        old = tenure.agents.get(AGENT)
        if all(run.info.goal == GOAL for run in tenure.runs.list(agent=AGENT)):
            _say(console, f"Replacing the office that an earlier demo left to {AGENT}")
            for run in tenure.runs.list(agent=AGENT):
                if not run.info.state.at_rest:
                    run.cancel()
            old.delete()
        else:
            raise InternalError(
                f"There is an agent named {AGENT} that did other work than this demo.",
                hint=f"The demo will not touch it. Run it with another home: `TENURE_HOME=/var/lib/tenure-demo "
                f"TENURE_PORT=7801 tenure demo`, or delete it: `tenure agent delete {AGENT}`.",
            )
    _say(console, f"Giving {AGENT} an office: a machine, a database and an object store of its own")
    before = time.monotonic()
    agent = tenure.agents.create(AGENT, cpus=2, memory_mb=2048, disk_gb=10, egress=["pip"])
    made_s = time.monotonic() - before
    kernel = agent.exec("uname -sr").stdout.strip()
    console.print(f"  made and awake in {made_s:.1f} s · a kernel of its own: {kernel} (gVisor)")
    console.print("  no network but what its egress rules allow: pip's own index")
    return agent


class _Told:
    """Prints what is new in a run since it was last shown."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._seen: dict[str, tuple[str, int]] = {}

    def show(self, info: wire.Run) -> None:
        for step in info.steps:
            now = (str(step.state), step.attempts)
            if self._seen.get(step.id) == now or step.state is wire.StepState.PENDING:
                continue
            self._seen[step.id] = now
            took = f" in {step.duration_s:.1f} s" if step.duration_s is not None and step.finished_at else ""
            again = f" (attempt {step.attempts})" if step.attempts > 1 else ""
            error = f" · {step.error.splitlines()[0][:100]}" if step.error else ""
            self._console.print(f"  {step.id:<16} {step.state}{took}{again}{error}")


def _polled(run: Run, told: _Told, wait_s: float) -> Iterator[wire.Run]:
    deadline = time.monotonic() + wait_s
    while time.monotonic() < deadline:
        with contextlib.suppress(ServerUnreachable):
            info = run.show()
            told.show(info)
            yield info
        time.sleep(POLL_S)
    raise InternalError(f"The run {run.id} did not get on within {wait_s:.0f} s.", hint=f"`tenure runs show {run.id}`")


def _until_mid_parallel(run: Run, told: _Told) -> None:
    """Until at least one of the years is scored and another is still at work: the middle of step 3."""
    for info in _polled(run, told, KILL_WAIT_S):
        years = [step.state for step in info.steps if step.id.startswith(f"{PARALLEL_STEP}[")]
        if wire.StepState.SUCCEEDED in years and wire.StepState.RUNNING in years:
            return
        if info.state.at_rest:
            raise InternalError(
                f"The run was {info.state} before its parallel steps were in the middle.",
                hint=info.question or info.error or f"`tenure runs show {run.id}` says why.",
            )


def _pull_the_plug(tenure: Tenure, console: Console) -> None:
    health = tenure.health()
    victims = [pid for pid in (health.pid, *(worker.pid for worker in health.workers)) if pid]
    _say(console, f"Pulling the plug: SIGKILL to the server and its worker ({', '.join(map(str, victims))})")
    for pid in victims:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    deadline = time.monotonic() + DEATH_WAIT_S
    while any(_is_running(pid) for pid in victims) and time.monotonic() < deadline:
        time.sleep(POLL_S / 4)
    console.print("  both are gone; the office and what runs in it go on by themselves")


def _is_running(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat", encoding="ascii", errors="replace") as stat:
            return stat.read().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def _until_rest(run: Run, told: _Told) -> None:
    for info in _polled(run, told, RUN_WAIT_S):
        if info.state is wire.RunState.SUCCEEDED:
            return
        if info.state.at_rest:
            raise InternalError(
                f"The run is {info.state}.",
                hint=info.question or info.error or f"`tenure runs show {run.id}` says why.",
            )


def _check_nothing_ran_twice(run: Run, finished_before: set[str], console: Console) -> None:
    """The journal is the witness: a step that had succeeded before the kill was not started after it."""
    starts: dict[str, int] = {}
    for event in run.events():
        if event.kind == "step_started" and event.step:
            starts[event.step] = starts.get(event.step, 0) + 1
    again = sorted(step for step in finished_before if starts.get(step, 0) != 1)
    if again:
        raise InternalError(f"These steps had finished before the kill and ran again: {', '.join(again)}.")
    console.print(f"  of {len(finished_before)} steps that had finished before the kill, none ran again")


def _sleep_and_wake(agent: Agent, console: Console) -> None:
    _say(console, f"Putting {agent.name} to sleep, and waking it")
    agent.sleep()
    console.print(f"  {agent.name} is {agent.show().state}: nothing of it runs")
    before = time.monotonic()
    agent.wake()
    woke_s = time.monotonic() - before
    checks = {
        "the file": agent.exec("test -s ~/work/report.md").exit_code == 0,
        "the package": agent.exec("python3 -c 'import pandas'").exit_code == 0,
        "the table": agent.sql("SELECT count(*) FROM weather").rows == [[1461]],
    }
    for what, there in checks.items():
        console.print(f"  {what:<12} {'still there' if there else 'GONE'}")
    if not all(checks.values()):
        raise InternalError("Something was lost in sleep.")
    console.print(f"  awake again in {woke_s:.2f} s")


def _show_result(agent: Agent, run: Run, console: Console) -> None:
    from tenure.cli.timeline import render_run

    _say(console, "The run, from its journal")
    console.print(render_run(run.show(), console.width))
    found = agent.objects.list()
    _say(console, "What it left")
    for item in found:
        console.print(f"  {item.bucket}/{item.name}  {item.size_bytes:,} bytes")
    report = next(item for item in found if item.name.endswith(".md"))
    console.print(f"  get it: tenure objects get {agent.name} {report.bucket}/{report.name}")
    text = agent.objects.get(report.bucket, report.name).decode("utf-8", "replace")
    lines = text.splitlines()
    more = f"{len(lines) - REPORT_LINES_SHOWN} more lines" if len(lines) > REPORT_LINES_SHOWN else None
    console.print(Panel(Markdown("\n".join(lines[:REPORT_LINES_SHOWN])), title=report.name, subtitle=more))
