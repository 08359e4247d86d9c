"""What happened to a run, told from its journal alone: what was tried, why, with what result, at what cost. Pure."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from tenure.cli.output import human_duration
from tenure.wire import RunEvent

RUNGS = {
    0: "retry",
    1: "self-correct",
    2: "other model",
    3: "replan",
    4: "reconnect",
    5: "restart office",
    6: "restore",
    7: "rebuild",
    8: "ask a person",
}
SAID_LATELY = 4
"""Entries among which the same text is not told again."""
Data = Mapping[str, Any]
"""Of an event."""
GOOD, BAD, DOUBT, PLAIN, QUIET = "green", "red", "yellow", "cyan", "dim"


@dataclass(frozen=True)
class Entry:
    """What one event of the journal says. `details` are the texts behind it, whole; `smooth`: it is what every step has that
    nothing happened to."""

    seq: int
    at: datetime
    kind: str
    step: str
    text: str
    details: str = ""
    style: str = PLAIN
    smooth: bool = False

    def to_json(self) -> dict[str, Any]:
        shown = {name: getattr(self, name) for name in ("seq", "kind", "step", "text", "details")}
        return {**shown, "at": self.at.isoformat()}


@dataclass
class Spent:
    """What the thoughts about a step took. `usd` None: nothing of it is known."""

    thoughts: int = 0
    tokens: int = 0
    usd: float | None = None
    seconds: float = 0.0
    unpriced: int = 0

    def add(self, usage: Data, seconds: float) -> None:
        self.thoughts += 1
        self.tokens += usage.get("input_tokens", 0) + usage.get("output_tokens", 0)
        self.seconds += seconds
        if usage.get("cost_usd") is None:
            self.unpriced += 1
        else:
            self.usd = (self.usd or 0.0) + usage["cost_usd"]

    def plus(self, other: Spent) -> None:
        self.thoughts += other.thoughts
        self.tokens += other.tokens
        self.seconds += other.seconds
        self.unpriced += other.unpriced
        if other.usd is not None:
            self.usd = (self.usd or 0.0) + other.usd

    def __str__(self) -> str:
        price = "price unknown" if self.usd is None else f"${self.usd:.4f}{'+' if self.unpriced else ''}"
        plural = "" if self.thoughts == 1 else "s"
        return f"{self.thoughts} thought{plural}, {self.tokens:,} tokens, {price}, {human_duration(self.seconds)}"


@dataclass
class Story:
    """Takes events in the journal's order; `entries` are those of all steps, by `step` (empty: of the run)."""

    entries: list[Entry] = field(default_factory=list[Entry])
    spent: dict[str, Spent] = field(default_factory=dict[str, Spent])
    plan: dict[str, dict[str, Any]] = field(default_factory=dict[str, dict[str, Any]])
    decisions: dict[tuple[str, int, int], dict[str, Any]] = field(
        default_factory=dict[tuple[str, int, int], dict[str, Any]]
    )
    asked: dict[str, str] = field(default_factory=dict[str, str])

    @property
    def all_spent(self) -> Spent | None:
        """None: no brain thought."""
        if not self.spent:
            return None
        total = Spent()
        for one in self.spent.values():
            total.plus(one)
        return total

    def take(self, event: RunEvent) -> Entry:
        """The event's entry, which is now one of `entries`."""
        step, tell = event.step or "", _TOLD.get(event.kind)
        try:
            told = Told(event.kind) if tell is None else tell(self, step, event.data)
        except (KeyError, TypeError):
            told = Told(event.kind)  # of a version that says it otherwise
        entry = Entry(
            event.seq,
            event.at,
            event.kind,
            told.step or step,
            told.text,
            told.details.strip("\n"),
            told.style,
            told.smooth,
        )
        self.entries.append(entry)
        return entry


@dataclass(frozen=True)
class Told:
    text: str
    details: str = ""
    style: str = PLAIN
    smooth: bool = False
    step: str = ""
    """Whose it is, where the event does not say so."""


# --- what is told by what was before --------------------------------------------------------------------------------------
def _planned(story: Story, step: str, data: Data) -> Told:
    before, story.plan = story.plan, {one["id"]: one for one in data["plan"]["steps"]}
    new = [one for one in story.plan if one not in before]
    gone = [one for one in before if one not in story.plan]
    lines = [f"+ {_planned_step(story.plan[one])}" for one in new] + [f"- {one}" for one in gone]
    if not before:
        return Told(f"the plan: {_count(len(new), 'step')}", "\n".join(lines), QUIET)
    by = f" by {step}" if step else ""
    reason = f": {data['reason']}" if data.get("reason") else ""
    changes = f"{len(new)} new, {len(gone)} left out"
    return Told(f"another plan{by} ({changes}){reason}", "\n".join(lines), DOUBT)


def _thinking(story: Story, step: str, data: Data) -> Told:
    thought = data["thought"]
    usage, decision, seconds = _map(thought.get("usage")), thought["decision"], data.get("duration_s", 0.0)
    story.decisions[step, data["attempt"], data["turn"]] = decision
    story.spent.setdefault(step, Spent()).add(usage, seconds)
    cost = usage.get("cost_usd")
    took = [
        _text(thought.get("model")),
        f"{usage.get('input_tokens', 0):,}+{usage.get('output_tokens', 0):,} tokens",
    ]
    took += [] if cost is None else [f"${cost:.4f}"]
    took.append(human_duration(seconds))
    details = [_text(thought.get("text")), _decided(decision)]
    head = f"thought {data['turn'] + 1} ({', '.join(part for part in took if part)}): {_decision(decision)}"
    return Told(head, "\n".join(part for part in details if part))


def _call_done(story: Story, step: str, data: Data) -> Told:
    decision, result = story.decisions.get((step, data["attempt"], data["turn"]), _map(None)), data["result"]
    calls = _list(decision.get("calls"))
    name = calls[data["index"]]["tool"] if data["index"] < len(calls) else _ANSWERED.get(decision.get("kind", ""), "it")
    how, style = ("ok", GOOD) if result["ok"] else ("failed", BAD)
    if result.get("unverified"):
        how, style = "unverified: nobody knows how it ended", DOUBT
    seconds = result.get("duration_s")
    after = "" if seconds is None else f" after {human_duration(seconds)}"
    return Told(f"{name}: {how}{after}", _text(result.get("output")), style)


def _ask(story: Story, step: str, data: Data) -> Told:
    question = data["question"]
    story.asked[question["id"]] = step
    whom = f" {question['to']}" if question.get("to") else ""
    again = ", since nobody answered in time" if question.get("replaces") else ""
    until = f", until {question['expires_at'][:19]}" if question.get("expires_at") else ""
    options = f"One of: {', '.join(question['options'])}" if question.get("options") else ""
    details = "\n".join(part for part in (question["id"], options, _text(question.get("evidence"))) if part)
    return Told(f"asks{whom}{again}{until}: {question['text']}", details, DOUBT)


def _question_answered(story: Story, _: str, data: Data) -> Told:
    by = data.get("by") or "nobody"
    return Told(
        f"answered by {by}: {data['answer']}", data["question"], GOOD, step=story.asked.get(data["question"], "")
    )


# --- the run -----------------------------------------------------------------------------------------------------------------
def _created(_: Story, __: str, data: Data) -> Told:
    settings = _map(data.get("settings"))
    models = ", ".join(_list(settings.get("models")))
    lines = [f"goal: {data['goal']}"]
    lines += [f"models: {models}"] if models else []
    budget = {name: value for name, value in _map(settings.get("budget")).items() if value is not None}
    lines += [f"budget: {', '.join(f'{name} {value:g}' for name, value in budget.items())}"] if budget else []
    lines += [f"has to hold: {_check(one)}" for one in _list(data.get("accept"))]
    lines += [f"sub-goal of {data['parent']}"] if data.get("parent") else []
    return Told(f"begun for {data['agent']}, with the brain {data['brain']}", "\n".join(lines), QUIET)


def _forked(_: Story, __: str, data: Data) -> Told:
    when = "before" if data.get("before") else "after"
    plan = ", with another plan" if data.get("plan") else ""
    return Told(f"forked of {data['run']}, {when} {data['step']} ({data['snapshot']}){plan}", "", DOUBT)


def _restored(_: Story, step: str, data: Data) -> Told:
    undone = ", ".join(_list(data.get("undone"))) or "nothing"
    text = f"the office went back to {data['snapshot']} (before: {data['before']}); again: {undone}"
    return Told(text, "", DOUBT)


# --- steps -------------------------------------------------------------------------------------------------------------------
def _effect_done(_: Story, __: str, data: Data) -> Told:
    result = data["result"]
    code = "" if result.get("exit_code") is None else f", exit code {result['exit_code']}"
    after = "" if result.get("duration_s") is None else f" after {human_duration(result['duration_s'])}"
    return Told(f"done{after}{code}; its checks follow", _text(result.get("output")), PLAIN, smooth=True)


def _succeeded(story: Story, step: str, data: Data) -> Told:
    checks, output = _text(data.get("evidence")), _text(_map(data.get("result")).get("output"))
    if any(one.step == step and output in one.details for one in story.entries[-SAID_LATELY:]):
        output = ""  # it was told with the effect
    text = "succeeded, verified" if checks else "succeeded"
    return Told(text, "\n".join(part for part in (checks, output) if part), GOOD, smooth=True)


def _went_wrong(what: str, style: str) -> Callable[[Story, str, Data], Told]:
    def tell(_: Story, __: str, data: Data) -> Told:
        failure = data["failure"]
        model = f", {data['model']}" if data.get("model") else ""
        return Told(f"{what} ({failure['kind']}{model}): {failure['message']}", _text(failure.get("evidence")), style)

    return tell


def _rung(_: Story, __: str, data: Data) -> Told:
    when = f", not before {data['not_before'][11:19]}" if data.get("not_before") else ""
    text = f"rung {data['rung']}, {RUNGS.get(data['rung'], 'unknown')}{when}, because of {data['reason']}"
    return Told(text, _text(data.get("evidence")), DOUBT)


def _rung_done(_: Story, __: str, data: Data) -> Told:
    text = f"rung {data['rung']} {'is done' if data['ok'] else 'did not help'}"
    return Told(text, _text(data.get("evidence")), GOOD if data["ok"] else BAD)


def _waiting(_: Story, __: str, data: Data) -> Told:
    what = f" for {data['run']}" if data.get("run") else ""
    reason = f": {data['reason']}" if data.get("reason") else ""
    return Told(f"waits{what} until {data['until'][:19]}{reason}", "", QUIET)


def _planned_step(step: Data) -> str:
    needs = f" (after {', '.join(step['needs'])})" if step.get("needs") else ""
    return f"{step['id']}{needs}: {step.get('name') or _effect(step.get('effect') or {})}"


def _effect(effect: Data) -> str:
    texts = [
        str(effect[name]) for name in ("instructions", "script", "statement", "path", "subject") if effect.get(name)
    ]
    return " ".join(" ".join(texts).split())


def _check(check: Data) -> str:
    found = [str(check[name]) for name in ("script", "statement", "path", "url") if check.get(name)]
    return f"{check.get('kind')}: {' '.join(found)}"


# --- decisions ---------------------------------------------------------------------------------------------------------------
_ANSWERED = {"plan": "its plan", "ask": "its question", "wait": "its wait", "finish": "its work"}


def _decision(decision: Data) -> str:
    match decision["kind"]:
        case "call":
            return f"uses {', '.join(call['tool'] for call in decision['calls'])}"
        case "plan":
            reason = f", {decision['reason']}" if decision.get("reason") else ""
            return f"proposes {_count(len(decision['plan']['steps']), 'step')}{reason}"
        case "ask":
            return "asks a person"
        case "wait":
            return "waits"
        case "finish":
            return "says that it is done"
        case "say":
            return "only talks"
        case other:
            return str(other)


def _decided(decision: Data) -> str:
    match decision["kind"]:
        case "call":
            return "\n".join(
                f"→ {call['tool']} {_arguments(_map(call.get('arguments')))}" for call in decision["calls"]
            )
        case "plan":
            return "\n".join(f"→ {_planned_step(step)}" for step in decision["plan"]["steps"])
        case "finish":
            return _text(decision.get("summary"))
        case _:
            return ""


def _arguments(arguments: Data) -> str:
    """As they are when there is only a text, else as JSON."""
    if len(arguments) == 1 and isinstance(only := next(iter(arguments.values())), str):
        return only
    return json.dumps(arguments, ensure_ascii=False)


def _map(value: Any) -> dict[str, Any]:
    return value or {}


def _list(value: Any) -> list[Any]:
    return value or []


def _text(value: Any) -> str:
    return value or ""


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


_TOLD: dict[str, Callable[[Story, str, Data], Told]] = {
    "run_created": _created,
    "planned": _planned,
    "run_claimed": lambda _, __, data: Told(
        f"taken by the worker {data['worker']} (claim {data['attempt']})", "", QUIET
    ),
    "parked": lambda _, __, data: Told(f"parked: {data['question']}", _text(data.get("evidence")), DOUBT),
    "answered": lambda _, __, data: Told(f"the owner answered: {data['answer']}", "", GOOD),
    "cancel_requested": lambda _, __, ___: Told("the owner wants it cancelled", "", DOUBT),
    "forked": _forked,
    "run_succeeded": lambda _, __, ___: Told("succeeded", "", GOOD),
    "run_failed": lambda _, __, data: Told(f"failed: {data['reason']}", "", BAD),
    "run_cancelled": lambda _, __, ___: Told("cancelled", "", DOUBT),
    "step_expanded": lambda _, __, data: Told(
        f"stands for {_count(len(data['values']), 'value')}", "\n".join(data["values"])
    ),
    "step_started": lambda _, __, data: Told(f"attempt {data['attempt']}", smooth=data["attempt"] == 1),
    "effect_done": _effect_done,
    "step_succeeded": _succeeded,
    "step_failed": _went_wrong("failed", BAD),
    "step_blocked": _went_wrong("could not go on", DOUBT),
    "step_unverified": _went_wrong("unverified", DOUBT),
    "step_skipped": lambda _, __, data: Told(f"skipped: {data['reason']}", "", QUIET),
    "snapshot_taken": lambda _, __, data: Told(
        f"snapshot {data['snapshot']}, {'before' if data['before'] else 'after'} it", "", QUIET, smooth=True
    ),
    "thinking": _thinking,
    "call_done": _call_done,
    "reported": lambda _, __, data: Told(f"says: {data['what']}", _said(data.get("data")), QUIET),
    "waiting": _waiting,
    "sub_goal_ended": lambda _, __, data: Told(f"{data['run']} {data['outcome']}", _text(data.get("summary"))),
    "asked": _ask,
    "question_answered": _question_answered,
    "rung_entered": _rung,
    "rung_done": _rung_done,
    "office_restored": _restored,
}
KINDS = frozenset(_TOLD)


def _said(data: Any) -> str:
    if data is None:
        return ""
    return data if isinstance(data, str) else json.dumps(data, ensure_ascii=False)


def story_of(events: Iterable[RunEvent]) -> Story:
    """The story of a journal, or of its beginning."""
    story = Story()
    for event in events:
        story.take(event)
    return story
