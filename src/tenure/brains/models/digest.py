"""Old turns in a few lines, made of the turns alone: the same turns give the same digest, whichever worker makes it."""

from __future__ import annotations

import json
from collections.abc import Sequence

from tenure.brains.models.prompts import cut
from tenure.work.thoughts import Ask, CallResult, CallTools, Finish, Propose, Turn, Wait

ARGUMENTS_CHARS_MAX = 200
OUTCOME_CHARS_MAX = 160
SAID_CHARS_MAX = 800
TEXTS_KEPT = 3
"""The last texts of the model are kept longer than its calls: they hold what it had concluded."""


def digest(turns: Sequence[Turn], chars_max: int) -> str:
    """At most `chars_max` characters; the oldest lines give way."""
    head = f"What you did before, in short ({len(turns)} turns; the results themselves are gone, look again where you need them):"
    lines = [line for turn in turns for line in _lines(turn)]
    texts = [turn.thought.text for turn in turns if turn.thought.text][-TEXTS_KEPT:]
    said = [f"You said then: {cut(text, SAID_CHARS_MAX)}" for text in texts]
    room = chars_max - len(head) - sum(len(text) + 1 for text in said) - 60
    kept: list[str] = []
    for line in reversed(lines):
        room -= len(line) + 1
        if room < 0:
            break
        kept.insert(0, line)
    left = len(lines) - len(kept)
    return "\n".join([head, *([f"- ({left} earlier lines left out)"] if left else []), *kept, *said])


def _lines(turn: Turn) -> list[str]:
    decision = turn.thought.decision
    answer = turn.results[0] if turn.results else None
    match decision:
        case CallTools(calls=calls):
            results = [*turn.results, *[None] * len(calls)]
            lines = [
                f"- {call.tool} {_short(call.arguments)}: {_outcome(result)}"
                for call, result in zip(calls, results, strict=False)
            ]
        case Ask(text=text):
            lines = [f"- asked: {cut(text, ARGUMENTS_CHARS_MAX)}; answer: {_outcome(answer)}"]
        case Wait(for_s=for_s, run=run):
            lines = [f"- waited {f'for run {run}' if run else f'{for_s:g} s'}"]
        case Propose(plan=plan):
            lines = [
                f"- proposed the plan {', '.join(step.id for step in plan.steps)[:ARGUMENTS_CHARS_MAX]}: {_outcome(answer)}"
            ]
        case Finish(summary=summary):
            lines = [f"- said that it is done: {cut(summary, ARGUMENTS_CHARS_MAX)}"]
        case _:
            lines = ["- said something without calling a tool"]
    if turn.note:
        lines.append(f"  and was told: {_one_line(turn.note, SAID_CHARS_MAX)}")
    return lines


def _outcome(result: CallResult | None) -> str:
    if result is None:
        return "cut off, outcome unknown"
    state = "unverified" if result.unverified else "ok" if result.ok else "failed"
    return f"{state}, {_one_line(result.output, OUTCOME_CHARS_MAX)}" if result.output else state


def _short(arguments: object) -> str:
    return _one_line(json.dumps(arguments, ensure_ascii=False, default=str), ARGUMENTS_CHARS_MAX)


def _one_line(text: str, chars_max: int) -> str:
    line = " ".join(text.split())
    return line if len(line) <= chars_max else line[: chars_max - 1] + "…"
