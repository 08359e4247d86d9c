"""A run as text: one line per step with its bar across time. Pure: the clock and the width are passed in."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING

from tenure.cli.output import human_duration, printable, sgr
from tenure.cli.story import RUNGS
from tenure.wire import Run, RunEvent, RunState, RunStep, StepState

if TYPE_CHECKING:
    from rich.text import Text

BAR_CHARS_MIN, BAR_CHARS_MAX = 10, 60
ID_CHARS_MAX = 32
ERROR_CHARS_MAX = 200
LINES_SHOWN = 8
"""Of what a failed step printed; `runs show --step` has all that the journal keeps."""

Paint = Callable[[str, str], str]
"""(text, style) -> text, see `tenure.cli.output.paint`."""

MARKS = {
    StepState.PENDING: ("·", "dim"),
    StepState.RUNNING: ("▶", "cyan"),
    StepState.SUCCEEDED: ("✓", "green"),
    StepState.FAILED: ("✗", "red"),
    StepState.SKIPPED: ("-", "dim"),
    StepState.UNVERIFIED: ("?", "yellow"),
    StepState.WAITING: ("○", "yellow"),
}
RUN_STYLES = {
    RunState.QUEUED: "dim",
    RunState.RUNNING: "cyan",
    RunState.PARKED: "yellow",
    RunState.SUCCEEDED: "green",
    RunState.FAILED: "red",
    RunState.CANCELLED: "magenta",
}
ASCII = str.maketrans("·▶✓✗█▒→…~│◇◆○", ".>+x#=>~~|o*o")


def plain(text: str, _: str) -> str:
    return text


@dataclass(frozen=True)
class Bar:
    """Columns that a step takes; `length` 0 for a step that has not begun."""

    start: int
    length: int


def bars(run: Run, width: int, now: datetime) -> list[Bar]:
    """One per step, in order, over the time from the run's first step to its last (or `now` while one runs)."""
    begins = [step.started_at for step in run.steps if step.started_at]
    if not begins:
        return [Bar(0, 0) for _ in run.steps]
    first = min(begins)
    last = max(_end(step, now) for step in run.steps if step.started_at)
    span_s = max((last - first).total_seconds(), 1e-3)
    return [_bar(step, first, span_s, width, now) for step in run.steps]


def _bar(step: RunStep, first: datetime, span_s: float, width: int, now: datetime) -> Bar:
    if step.started_at is None:
        return Bar(0, 0)
    start = min(int((step.started_at - first).total_seconds() / span_s * width), width - 1)
    end = round((_end(step, now) - first).total_seconds() / span_s * width)
    return Bar(start, min(max(end - start, 1), width - start))


def _end(step: RunStep, now: datetime) -> datetime:
    assert step.started_at is not None
    return step.finished_at or max(now, step.started_at)


def took(step: RunStep, now: datetime) -> float | None:
    if step.duration_s is not None:
        return step.duration_s
    return (_end(step, now) - step.started_at).total_seconds() if step.started_at else None


def trouble(step: RunStep) -> str:
    """What a smooth step does not have: more attempts than one, rungs of the ladder."""
    parts = [f"{step.attempts} attempts"] if step.attempts > 1 else []
    if step.rungs:
        parts.append("rungs " + "→".join(f"{rung}" for rung in step.rungs))
    return ", ".join(parts)


def kept(step: RunStep) -> str:
    """The snapshots at which the run can be forked: before the step (◇) and after it (◆)."""
    newest = {one.before: one.id for one in step.snapshots}
    return " ".join(f"{'◇' if before else '◆'} {newest[before]}" for before in (True, False) if before in newest)


def render(
    run: Run,
    *,
    width: int,
    now: datetime,
    paint: Paint = plain,
    ascii_only: bool = False,
    said: Mapping[str, Sequence[str]] | None = None,
) -> list[str]:
    """The whole run: its heading, its steps, what it asks or why it failed. `said` are the last lines that failed steps
    printed."""
    ids = min(max([len(step.id) for step in run.steps], default=0), ID_CHARS_MAX)
    troubles = max([len(trouble(step)) for step in run.steps], default=0)
    snapshots = max([len(kept(step)) for step in run.steps], default=0)
    bar_width = min(max(width - ids - troubles - snapshots - 20, BAR_CHARS_MIN), BAR_CHARS_MAX)
    lines = [heading(run, now, paint), printable(run.goal), *_origin_lines(run, paint), ""]
    for step, bar in zip(run.steps, bars(run, bar_width, now), strict=True):
        lines.append(_step_line(step, bar, ids, bar_width, now, paint))
        if step.error and step.state in (StepState.FAILED, StepState.UNVERIFIED):
            lines.append(paint(f"    {_first_line(step.error, width - 4)}", "red"))
            lines += [f"    {paint('│', 'red')} {line}" for line in (said or {}).get(step.id, ())]
    lines += ending(run, paint)
    return [line.translate(ASCII) for line in lines] if ascii_only else lines


def render_run(run: Run, width: int) -> Text:
    """The run as rich prints it on a console of `width` columns."""
    from datetime import UTC

    from rich.text import Text

    return Text.from_ansi("\n".join(render(run, width=width, now=datetime.now(UTC), paint=_ansi)))


def _ansi(text: str, style: str) -> str:
    return f"\x1b[{sgr(style)}m{text}\x1b[0m" if text else text


def _step_line(step: RunStep, bar: Bar, ids: int, bar_width: int, now: datetime, paint: Paint) -> str:
    mark, style = MARKS[step.state]
    shown = step.id if len(step.id) <= ids else step.id[: ids - 1] + "…"
    block = "▒" if step.state is StepState.RUNNING else "█"
    picture = " " * bar.start + paint(block * bar.length, style) + " " * (bar_width - bar.start - bar.length)
    line = f"{paint(mark, style)} {shown.ljust(ids)}  {picture}  {human_duration(took(step, now)):>11}"
    more = [(trouble(step), "yellow"), (kept(step), "dim")]
    return "  ".join([line, *(paint(text, style) for text, style in more if text)])


def _origin_lines(run: Run, paint: Paint) -> list[str]:
    if run.origin is None:
        return []
    when = "before" if run.origin.before else "after"
    return [paint(f"forked of {run.origin.run}, {when} {run.origin.step} ({run.origin.snapshot})", "dim")]


def heading(run: Run, now: datetime, paint: Paint = plain) -> str:
    duration = ""
    if run.started_at:
        end = run.finished_at or (run.started_at if run.state is RunState.PARKED else now)
        if end > run.started_at:
            duration = f"  {human_duration((end - run.started_at).total_seconds())}"
    return f"{paint(run.id, 'bold')}  {paint(run.state, RUN_STYLES[run.state])}  {run.agent}{duration}"


def ending(run: Run, paint: Paint = plain) -> list[str]:
    """What a run at rest has to say: why it failed, or what it asks."""
    lines: list[str] = []
    if run.error:
        lines += ["", paint(printable(run.error), "red")]
    if run.state is RunState.PARKED:
        lines += ["", paint("It asks:", "yellow") + f" {printable(run.question or '(nothing)')}"]
        lines += [f"To answer: tenure answer {one.id} {'--yes' if one.approval else '…'}" for one in run.questions]
        if not run.questions or any(step.state in (StepState.FAILED, StepState.UNVERIFIED) for step in run.steps):
            lines.append(f"For example: tenure runs resume {run.id} --answer retry --follow")
    return lines


def _first_line(text: str, width: int) -> str:
    line = printable(text.strip()).split("\n", 1)[0]
    return line if len(line) <= width else line[: max(width - 1, 1)] + "…"


def lines_of(event: RunEvent, began: Mapping[str, datetime]) -> list[str]:
    """What an entry of the journal says to one who watches, for output that is not a terminal. `began` says since when
    each step's attempt runs."""
    data, step = event.data, event.step or ""
    attempt = f", attempt {data['attempt']}" if data.get("attempt", 1) > 1 else ""
    took_s = (event.at - began[step]).total_seconds() if step in began else None
    after = f" after {human_duration(took_s)}" if took_s is not None else ""
    match event.kind:
        case "step_started":
            return [f"  {step}: running{attempt}"]
        case "step_succeeded":
            return [f"  {step}: succeeded{after}{attempt}"]
        case "step_failed" | "step_blocked" | "step_unverified":
            failure = data["failure"]
            said = [f"    | {line}" for line in last_lines(failure.get("evidence", ""), LINES_SHOWN)]
            state = event.kind.removeprefix("step_")
            return [f"  {step}: {state}{after}{attempt}: {_first_line(failure['message'], ERROR_CHARS_MAX)}", *said]
        case "step_skipped":
            return [f"  {step}: skipped ({_first_line(data['reason'], ERROR_CHARS_MAX)})"]
        case "snapshot_taken":
            return [f"  {step}: snapshot {data['snapshot']}, {'before' if data['before'] else 'after'} it"]
        case "office_restored":
            again = ", ".join(data["undone"]) or "nothing"
            return [
                f"  {step}: the office is as it was at {data['snapshot']} (before: {data['before']}); again: {again}"
            ]
        case "forked":
            when = "before" if data["before"] else "after"
            return [f"  forked of {data['run']}, {when} {data['step']}"]
        case "rung_entered":
            return [f"  {step}: rung {data['rung']} ({RUNGS.get(data['rung'], 'unknown')})"]
        case _:
            return []


def last_lines(text: str, count: int) -> list[str]:
    """The last lines of an output, where errors stand; a mark where some were left out."""
    lines = printable(text).rstrip().splitlines()
    return lines if len(lines) <= count else ["…", *lines[-count:]]
