"""Which of a program's tool calls a person has to allow, and what the program is answered. Pure."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

from pydantic import JsonValue

from tenure.brains.base import Report
from tenure.brains.errands import is_yes
from tenure.work.thoughts import QUESTION_CHARS_MAX, Question


def needs_person(patterns: Sequence[str], tool: Mapping[str, Any]) -> bool:
    """Whether a pattern matches the kind of the tool call (`execute`, `edit`, `delete`, …) or its title."""
    names = (str(tool["kind"]).lower(), str(tool["title"]).lower())
    return any(fnmatchcase(name, pattern.lower()) for pattern in patterns for name in names)


def fingerprint(tool: Mapping[str, Any]) -> str:
    """The same for the same tool call with the same input: an answer is for that, and for nothing that only looks like it."""
    body = json.dumps([tool["kind"], tool["title"], tool["mark"]])
    return hashlib.sha256(body.encode("utf-8", "replace")).hexdigest()[:16]


def question_of(question_id: str, program: str, tool: Mapping[str, Any]) -> Question:
    return Question(
        id=question_id,
        text=f"May {program} do this? {tool['title'] or tool['kind']}"[:QUESTION_CHARS_MAX],
        options=("yes", "no"),
        evidence=f"kind: {tool['kind']}\n{tool['input']}".strip(),
        approval=True,
    )


def used_up(reports: Sequence[Report]) -> set[str]:
    """Questions whose yes has been passed on."""
    return {str(_field(report, "question")) for report in reports if report.what == "allowed"}


def answered(
    reports: Sequence[Report], answers: Mapping[str, str], used: Collection[str], tool: Mapping[str, Any]
) -> tuple[str, str] | None:
    """(question, answer) of a person for this very tool call: a no, which is for good, or a yes that was not used yet. None:
    a person has to be asked."""
    mark = fingerprint(tool)
    found: tuple[str, str] | None = None
    for report in reports:
        if report.what != "asked" or _field(report, "mark") != mark:
            continue
        question = str(_field(report, "id"))
        answer = answers.get(question)
        if answer is None or question in used:
            continue
        if not is_yes(answer):
            return question, answer
        found = question, answer
    return found


def _field(report: Report, name: str) -> JsonValue:
    data = report.data
    if not isinstance(data, dict):
        return None
    question = data.get("question")
    if name == "id" and isinstance(question, dict):
        return question.get("id")
    return data.get(name)


def choice(options: Sequence[Mapping[str, Any]], *, allow: bool) -> dict[str, Any]:
    """The outcome to answer with: once, where that is offered."""
    word = "allow" if allow else "reject"
    for kind in (f"{word}_once", f"{word}_always"):
        for option in options:
            if option["kind"] == kind:
                return {"outcome": "selected", "optionId": option["optionId"]}
    return {"outcome": "cancelled"}
