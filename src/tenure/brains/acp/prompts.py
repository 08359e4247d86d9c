"""What a program is told when it begins, and when it goes on. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

from tenure.brains.base import Errand, Report
from tenure.work.failures import tail
from tenure.work.thoughts import Purpose

ALLOWED = (
    "What was allowed may not have been done yet: look, and do it now if it still has to be. It is then granted once."
)
PROMPT_BYTES_MAX = 64 * 1024
PAST_ITEMS_MAX = 40
PAST_BYTES_MAX = 8192
OFFICE = (
    "You work alone in an office of your own: a machine with a shell, files, a database (psql), object storage and an MCP "
    "server named tenure. Nobody reads what you write until you are done, so do not ask back in text: decide, and go on. "
    "Whether you are done is decided by checks, not by your word."
)
UNVERIFIED = (
    "You were interrupted. What you were doing at that moment may have taken effect, in part or not at all, and commands that "
    "were running were ended. Look at how things are before you do anything again."
)


def first(errand: Errand, *, interrupted: bool) -> str:
    """For a session that knows nothing yet. `interrupted`: something was done for this errand before."""
    parts = [OFFICE, f"The goal:\n{errand.goal}"]
    if errand.instructions and errand.instructions.strip() != errand.goal.strip():
        parts.append(f"What you are to do for it now:\n{errand.instructions}")
    if errand.purpose is Purpose.MEND:
        parts.append("Only take out of the way what keeps that from succeeding; it is then tried again.")
    if interrupted:
        parts.append(UNVERIFIED)
        if past := _past(errand.reports):
            parts.append(f"What was done before, as it was told then:\n{past}")
    return _whole(parts, errand)


def further(errand: Errand, *, interrupted: bool) -> str:
    """For a session that was loaded: it knows the goal and what was done."""
    parts = [UNVERIFIED] if interrupted else []
    if errand.instructions:
        parts.append(f"Go on with this:\n{errand.instructions}")
    return _whole(parts, errand)


def _whole(parts: list[str], errand: Errand) -> str:
    if errand.trouble:
        parts.append(f"The attempt before this one failed:\n{errand.trouble}")
    if said := _answers(errand):
        parts.append(said)
    return tail("\n\n".join(parts), PROMPT_BYTES_MAX)


def _answers(errand: Errand) -> str:
    lines: list[str] = []
    for report in errand.reports:
        if report.what == "asked" and isinstance(report.data, dict):
            question = cast("dict[str, Any]", report.data["question"])
            answer = errand.answers.get(str(question["id"]))
            if answer is not None:
                lines.append(f"- {question['text']} Answer: {answer}")
    if not lines:
        return ""
    return "\n".join(["A person was asked:", *lines, ALLOWED])


def _past(reports: Sequence[Report]) -> str:
    lines: list[str] = []
    for report in reports:
        if report.what != "activity" or not isinstance(report.data, dict):
            continue
        data = cast("dict[str, Any]", report.data)
        lines += [f"- {tool['title'] or tool['kind']}: {tool['status']}" for tool in data.get("tools", ())]
        if data.get("said"):
            lines.append(f"- said: {data['said'].strip()}")
    return tail("\n".join(lines[-PAST_ITEMS_MAX:]), PAST_BYTES_MAX)
