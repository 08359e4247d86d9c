"""`${{ … }}` in playbooks: strict, textual, and known before the run which names may occur.

    ${{ item }}              the value of this node of a `for_each`
    ${{ inputs.year }}       an input of the run
    ${{ steps.load.output }} what a step that this one needs has printed (or its SQL value)
    ${{ goal }}              the run's goal

The text is put in as it is: in a script, quote it as you would quote a variable's value; scripts also find the same
values in the environment (`TENURE_ITEM`, `TENURE_GOAL`).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from tenure.work.plan import item_text

_EXPRESSION = re.compile(r"\$\{\{(.*?)\}\}", re.DOTALL)
_INPUT = re.compile(r"inputs\.([A-Za-z_][A-Za-z0-9_-]*)\Z")
_OUTPUT = re.compile(r"steps\.([A-Za-z_][A-Za-z0-9_-]*)\.output\Z")
_COMPARISON = re.compile(r"(.*?)(==|!=)(.*)\Z", re.DOTALL)
_FALSE = frozenset({"", "0", "false", "no", "null", "none"})


class TemplateError(ValueError):
    """An expression that means nothing here; the text says which, and what would."""


@dataclass(frozen=True)
class Scope:
    """What expressions may name. `outputs` holds only steps that are done."""

    inputs: Mapping[str, object] = field(default_factory=dict[str, object])
    outputs: Mapping[str, str] = field(default_factory=dict[str, str])
    item: str | None = None
    goal: str = ""


def render(text: str, scope: Scope) -> str:
    """`text` with every expression replaced. Raises `TemplateError`."""
    return _EXPRESSION.sub(lambda match: _value(match[1].strip(), scope), text)


def holds(condition: str, scope: Scope) -> bool:
    """Whether `if:` is met: `A == B`, `A != B` compare text (quotes around a side are dropped); a single value holds unless
    it is empty, 0, false, no, null or none."""
    rendered = render(condition, scope).strip()
    if match := _COMPARISON.match(rendered):
        same = _unquoted(match[1]) == _unquoted(match[3])
        return same if match[2] == "==" else not same
    return _unquoted(rendered).lower() not in _FALSE


def _unquoted(text: str) -> str:
    text = text.strip()
    return text[1:-1] if len(text) >= 2 and text[0] == text[-1] and text[0] in "'\"" else text


def _value(expression: str, scope: Scope) -> str:
    if expression == "item" and scope.item is not None:
        return scope.item
    if expression == "goal":
        return scope.goal
    if (match := _INPUT.match(expression)) and match[1] in scope.inputs:
        return item_text(scope.inputs[match[1]])
    if (match := _OUTPUT.match(expression)) and match[1] in scope.outputs:
        return scope.outputs[match[1]]
    raise TemplateError(f"${{{{ {expression} }}}} is not known here")


def check(text: str, *, inputs: Iterable[str], upstream: Iterable[str], has_item: bool, suggest: Suggest) -> list[str]:
    """What is wrong with the expressions of `text`, as sentences; nothing when all can be filled in. `upstream` are the steps
    that will be done before this one; `suggest(word, words)` gives a did-you-mean."""
    problems: list[str] = []
    inputs, upstream = list(inputs), list(upstream)
    for match in _EXPRESSION.finditer(text):
        expression = match[1].strip()
        shown = f"${{{{ {expression} }}}}"
        if expression == "goal" or (expression == "item" and has_item):
            continue
        if expression == "item":
            problems.append(f"{shown} has a value only in a step with for_each")
        elif found := _INPUT.match(expression):
            if found[1] not in inputs:
                problems.append(f"{shown}: there is no input {found[1]!r}{suggest(found[1], inputs)}")
        elif found := _OUTPUT.match(expression):
            if found[1] not in upstream:
                problems.append(f"{shown}: this step does not need {found[1]!r}, so its output may not be there yet")
        else:
            problems.append(f"{shown} is not known; there are inputs.NAME, steps.ID.output, item and goal")
    return problems


Suggest = Callable[[str, list[str]], str]
