"""Words for a brain: what was wrong with a call, in a way that helps to make a better one. Pure."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from typing import Any

from pydantic import JsonValue, ValidationError

from tenure.errors import TenureError
from tenure.work.thoughts import RESULT_CHARS_MAX

NEAR_MAX = 3
PROBLEMS_MAX = 10
SHOWN_CHARS_MAX = 80
NOT_PLAIN = (
    "there is a NUL or half of a surrogate pair in the arguments, which no program can be given. Make such bytes in the "
    "office, as with printf or python3."
)


def cut(text: str, whole: str = "", chars_max: int = RESULT_CHARS_MAX) -> str:
    """`text`, or its beginning and its end with a line between that counts what is missing, and says by `whole` where it is."""
    if len(text) <= chars_max:
        return text
    mark = "\n[… {} characters left out here" + (f"; {whole}" if whole else "") + " …]\n"
    room = chars_max - len(mark) - len(str(len(text)))
    head = room // 2
    tail = room - head
    return text[:head] + mark.format(len(text) - room) + text[len(text) - tail :]


def is_plain(encoded: str) -> bool:
    """Whether what this JSON holds can be given to programs: no NUL, no half of a surrogate pair."""
    try:
        encoded.encode()
    except UnicodeEncodeError:
        return False
    return "\\u0000" not in encoded.replace("\\\\", "")


def near(name: str, names: Iterable[str]) -> str:
    """A sentence that names the ones alike, or nothing."""
    found = difflib.get_close_matches(name.lower(), list(names), n=NEAR_MAX, cutoff=0.5)
    return f" Did you mean {' or '.join(found)}?" if found else ""


def unknown_tool(name: str, names: Iterable[str]) -> str:
    names = list(names)
    return f"There is no tool {shown(name)}.{near(name, names)} There are: {', '.join(names)}."


def wrong_arguments(tool: str, error: ValidationError, fields: Mapping[str, Any]) -> str:
    """What is wrong with each argument, and which there are."""
    problems: list[str] = []
    for one in error.errors(include_url=False)[:PROBLEMS_MAX]:
        name = ".".join(str(part) for part in one["loc"]) or "the arguments"
        if one["type"] == "extra_forbidden":
            problems.append(f"{shown(name)} is not an argument.{near(name, fields)}")
        elif one["type"] == "missing":
            problems.append(f"{name} is missing.")
        else:
            problems.append(f"{name}: {one['msg']} (it was {shown(one['input'])}).")
    known = f"Its arguments: {', '.join(fields) or 'none'}."
    return f"Nothing was done: {tool} cannot be called like this. {' '.join(problems)} {known}"


def shown(value: JsonValue | object) -> str:
    """`value` as one short piece of text."""
    text = repr(value)
    return text if len(text) <= SHOWN_CHARS_MAX else text[: SHOWN_CHARS_MAX - 1] + "…"


def told(error: TenureError) -> str:
    """What happened, and what to try."""
    return f"{error.message} {error.hint}".strip()
