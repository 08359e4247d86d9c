"""A step's `verify`: questions to the office, which must not change anything and so may be asked again."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any, assert_never

from tenure.errors import LeaseLost
from tenure.work.effects import Blocked, Failed, Order, result_of, run_to_end
from tenure.work.failures import Failure, FailureClass, failure_of, is_definite
from tenure.work.hands import Command, CommandState, Hands
from tenure.work.plan import Check, FileCheck, HttpCheck, RunCheck, SqlCheck, item_text
from tenure.work.template import Scope, render

HTTP_TIMEOUT_S = 60


async def make(hands: Hands, order: Order, check: Check, scope: Scope) -> str | Failed | Blocked:
    """What held, in words; or why not. `order.key` names the check's command. Raises `LeaseLost` and `TemplateError`."""
    try:
        match check:
            case SqlCheck():
                return await _sql(hands, order, render(check.statement, scope), check.equals, scope)
            case RunCheck():
                return await _run(hands, order, render(check.script, scope))
            case FileCheck():
                return await _file(hands, order, render(check.path, scope))
            case HttpCheck():
                return await _http(hands, order, render(check.url, scope), check.status, render(check.contains, scope))
            case _:
                assert_never(check)
    except LeaseLost:
        raise
    except Exception as error:  # noqa: BLE001 - whatever it is, the ladder has to hear of it
        failure = failure_of(error)
        if not is_definite(error):
            return Blocked(failure)
        return _refuted(f"the check could not be made: {failure.message}", failure.evidence)


async def _sql(hands: Hands, order: Order, statement: str, equals: Any, scope: Scope) -> str | Failed:
    found = await hands.sql(order.agent, statement, rows_max=1)
    value = found.rows[0][0] if found.rows and found.rows[0] else None
    if equals is None:
        holds, wanted = bool(value), "a true value"
    else:
        wanted = render(equals, scope) if isinstance(equals, str) else equals
        holds = _same(value, wanted)
    if holds:
        return f"{statement.strip()} = {_shown(value)}"
    return _refuted(f"expected {_shown(wanted)}, found {_shown(value)}", statement)


async def _run(hands: Hands, order: Order, script: str) -> str | Failed | Blocked:
    command = Command(script, order.env, order.cwd, timeout_s=order.timeout_s)
    # A check has no intent in the journal: its key is always the same, and starting it twice starts it once.
    status = await run_to_end(hands, replace(order, point=f"{order.point}/check"), command, fresh=True)
    output = result_of(status).output
    if status.state is not CommandState.EXITED:
        return Blocked(Failure(kind=FailureClass.LOST, message="The check's command was lost.", evidence=output))
    await hands.forget_command(order.agent, order.key)
    if status.exit_code == 0:
        return f"`{script.strip().splitlines()[0][:80]}` exited with 0" if script.strip() else "exited with 0"
    why = "was ended by its timeout" if status.timed_out else f"exited with {status.exit_code}"
    return _refuted(f"the check {why}", output)


async def _file(hands: Hands, order: Order, path: str) -> str | Failed:
    found = await hands.read_file(order.agent, path, bytes_max=1)
    if found is None:
        return _refuted(f"there is no file {path}", "")
    return f"{path} is there" if found else _refuted(f"{path} is empty", "")


async def _http(hands: Hands, order: Order, url: str, status: int, contains: str) -> str | Failed | Blocked:
    """By the office's own curl: what it reaches is what the office reaches."""
    answered = 'code=$(curl -sS -m "$SECONDS_MAX" -o "$body" -w "%{http_code}" -- "$URL") || exit 1'
    script = f"""
        body=$(mktemp) && trap 'rm -f "$body"' EXIT
        {answered}
        [ "$code" = "$STATUS" ] || {{ echo "it answered $code"; head -c 2000 "$body"; exit 1; }}
        [ -z "$CONTAINS" ] || grep -qF -- "$CONTAINS" "$body" || {{ head -c 2000 "$body"; exit 1; }}
    """
    seconds_max = str(min(HTTP_TIMEOUT_S, int(order.timeout_s) or 1))
    env = {"URL": url, "STATUS": str(status), "CONTAINS": contains, "SECONDS_MAX": seconds_max}
    found = await _run(hands, replace(order, env={**order.env, **env}), script)
    if isinstance(found, str):
        return f"{url} answers {status}" + (f" with {contains!r}" if contains else "")
    if isinstance(found, Failed):
        wanted = f"{status}" + (f" and {contains!r}" if contains else "")
        return _refuted(f"{url} does not answer {wanted}", found.failure.evidence)
    return found


def _same(value: Any, wanted: Any) -> bool:
    """Equal as values, or as the texts that a person writes into YAML (`1461` for a numeric that JSON carries as text)."""
    return value == wanted or item_text(value) == item_text(wanted)


def _shown(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, default=str)


def _refuted(why: str, evidence: str) -> Failed:
    return Failed(Failure(kind=FailureClass.VERIFICATION, message=f"Not verified: {why}.", evidence=evidence))
