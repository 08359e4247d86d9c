"""Carries out what a step does, once: by its key an effect is begun, or, after a crash, asked for."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import assert_never

from tenure.errors import CommandTimeout, LeaseLost, TenureError
from tenure.faultpoints import reach
from tenure.work.events import Result
from tenure.work.failures import Failure, FailureClass, failure_of, is_definite, says_disk_full, tail
from tenure.work.hands import Command, CommandState, CommandStatus, Hands, SqlResult
from tenure.work.plan import Effect, Notify, PutObject, RunScript, RunSql, Work, item_text
from tenure.work.template import Scope, render
from tenure.work.thoughts import Question

WAIT_S = 20.0
"""One question after a running command; the next follows at once."""
OVERDUE_S = 60.0
"""How long after its timeout a command that still reports to run is taken to hang with its office."""
OUTPUT_BYTES_MAX = 8192
"""Of what a step printed, kept in the journal."""
ROWS_MAX = 100
"""Of a query's rows, kept in the journal."""


@dataclass(frozen=True)
class Done:
    result: Result


@dataclass(frozen=True)
class Failed:
    """It surely did not (fully) happen, or said that it failed: a next attempt is a new effect."""

    failure: Failure
    result: Result = field(default_factory=Result)


@dataclass(frozen=True)
class Blocked:
    """Not known yet: ask again by the same key."""

    failure: Failure


@dataclass(frozen=True)
class Lost:
    """Begun, and nobody will ever know how it ended."""

    failure: Failure


@dataclass(frozen=True)
class Asks:
    """It cannot go on before a person answered; nothing of it runs meanwhile."""

    question: Question


Outcome = Done | Failed | Blocked | Lost | Asks


@dataclass(frozen=True)
class Order:
    """All that one attempt's effect needs, filled in. `due` is when a command must have ended."""

    agent: str
    run_id: str
    key: str
    effect: Effect
    env: dict[str, str]
    cwd: str | None
    timeout_s: float
    due: datetime
    point: str
    """Names the effect in fault points."""


def filled_in(effect: Effect, scope: Scope) -> Effect:
    """`effect` with every expression replaced. Raises `TemplateError`."""
    match effect:
        case RunScript():
            return RunScript(script=render(effect.script, scope))
        case RunSql():
            return RunSql(statement=render(effect.statement, scope))
        case PutObject():
            path, bucket, name = (render(text, scope) for text in (effect.path, effect.bucket, effect.name))
            return PutObject(path=path, bucket=bucket, name=name)
        case Notify():
            return Notify(subject=render(effect.subject, scope), body=render(effect.body, scope))
        case Work():
            return effect.model_copy(update={"instructions": render(effect.instructions, scope)})
        case _:
            assert_never(effect)


async def perform(hands: Hands, order: Order, *, fresh: bool) -> Outcome:
    """Begins the effect, or (`fresh` False) finds out about one that may have been begun. Raises only `LeaseLost`."""
    try:
        return await _perform(hands, order, fresh=fresh)
    except LeaseLost:
        raise
    except Exception as error:  # noqa: BLE001 - whatever it is, the ladder has to hear of it
        failure = failure_of(error)
        return Failed(failure) if is_definite(error) else Blocked(failure)


async def _perform(hands: Hands, order: Order, *, fresh: bool) -> Outcome:
    match order.effect:
        case RunScript():
            return await _run(hands, order, order.effect, fresh=fresh)
        case RunSql():
            async with _within(order.timeout_s), _points("sql", order.point):
                found = await hands.sql(order.agent, order.effect.statement, key=order.key, rows_max=ROWS_MAX)
            return Done(Result(output=sql_output(found)))
        case PutObject():
            async with _within(order.timeout_s), _points("put", order.point):
                put = order.effect
                stored = await hands.put_object(order.agent, put.path, put.bucket, put.name, key=order.key)
            return Done(Result(output=f"{put.bucket}/{put.name}", output_bytes=int(stored.get("size_bytes", 0))))
        case Notify():
            async with _within(order.timeout_s), _points("notify", order.point):
                left = order.effect
                await hands.notify(order.agent, left.subject, left.body, key=order.key, run_id=order.run_id)
            return Done(Result())
        case Work():
            raise AssertionError("a brain does it, not the hands")
        case _:
            assert_never(order.effect)


async def _run(hands: Hands, order: Order, effect: RunScript, *, fresh: bool) -> Outcome:
    command = Command(effect.script, order.env, order.cwd, timeout_s=order.timeout_s)
    status = await run_to_end(hands, order, command, fresh=fresh)
    result = result_of(status)
    if status.state is CommandState.LOST:
        message = "The sandbox ended while the command ran; whether it took effect is unknown."
        return Lost(Failure(kind=FailureClass.LOST, message=message, evidence=result.output))
    if status.state is CommandState.RUNNING:
        message = f"The command still runs {OVERDUE_S:g} s after its timeout: the office does not end it."
        return Blocked(Failure(kind=FailureClass.SANDBOX, message=message, evidence=result.output))
    if status.timed_out:
        return Failed(await _timed_out(hands, order, result), result)
    if status.exit_code != 0:
        kind = FailureClass.DISK_FULL if says_disk_full(result.output) else FailureClass.COMMAND
        message = f"The command exited with {status.exit_code}."
        failure = Failure(kind=kind, message=message, evidence=result.output, exit_code=status.exit_code)
        return Failed(failure, result)
    return Done(result)


async def run_to_end(hands: Hands, order: Order, command: Command, *, fresh: bool) -> CommandStatus:
    """Starts the command unless it was started, and waits for it to leave RUNNING; RUNNING only when it is overdue and cannot
    be stopped. Raises what `Hands` raises."""
    status = CommandStatus(CommandState.ABSENT)
    if not fresh:
        status = await hands.command_status(order.agent, order.key)
    if status.state is CommandState.ABSENT:
        async with _points("run", order.point):
            status = await hands.start_command(order.agent, order.key, command)
    overdue = order.due + timedelta(seconds=OVERDUE_S)
    while status.state is CommandState.RUNNING:
        if datetime.now(UTC) > overdue:
            await hands.stop_command(order.agent, order.key)
            return await hands.command_status(order.agent, order.key)
        status = await hands.command_status(order.agent, order.key, wait_s=WAIT_S)
    return status


async def _timed_out(hands: Hands, order: Order, result: Result) -> Failure:
    message = f"The command was ended after its timeout of {order.timeout_s:g} s."
    kind = FailureClass.TIMEOUT
    if not await hands.probe(order.agent):
        kind, message = FailureClass.SANDBOX, f"{message} The office does not answer."
    return Failure(kind=kind, message=message, evidence=result.output, exit_code=result.exit_code)


async def forget(hands: Hands, agent: str, key: str) -> None:
    """Lets the office drop a command's output, now that the journal has it. Best effort: a failure costs disk, no more."""
    try:
        async with _points("forget", key.partition(".")[2]):
            await hands.forget_command(agent, key)
    except LeaseLost:
        raise
    except TenureError:
        return


def result_of(status: CommandStatus) -> Result:
    return Result(
        output=tail(status.output, OUTPUT_BYTES_MAX).rstrip("\n"),
        output_bytes=status.output_bytes,
        exit_code=status.exit_code,
        duration_s=status.duration_s,
    )


def sql_output(found: SqlResult) -> str:
    """A single value as text; more as JSON rows; nothing for a statement without rows."""
    if len(found.rows) == 1 and len(found.rows[0]) == 1:
        value = found.rows[0][0]
        return "" if value is None else tail(item_text(value), OUTPUT_BYTES_MAX)
    return tail(json.dumps(found.rows, default=str), OUTPUT_BYTES_MAX) if found.columns else ""


@asynccontextmanager
async def _within(timeout_s: float) -> AsyncGenerator[None]:
    """Bounds a call that has no timeout of its own. What it does on the other side may still finish: its key will tell."""
    try:
        async with asyncio.timeout(timeout_s):
            yield
    except TimeoutError as error:
        raise CommandTimeout(f"No answer within the step's timeout of {timeout_s:g} s.") from error


@asynccontextmanager
async def _points(kind: str, point: str) -> AsyncGenerator[None]:
    """The fault points around one effect."""
    reach(f"effect.{kind}.before/{point}")
    yield
    reach(f"effect.{kind}.after/{point}")
