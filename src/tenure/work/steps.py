"""What a driver does for one node: each function acts in the office and returns the events that came of it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from tenure.errors import LeaseLost, NotFound
from tenure.faultpoints import reach
from tenure.work import checks, effects, working
from tenure.work import events as e
from tenure.work.decide import scope_of
from tenure.work.effects import Asks, Blocked, Done, Failed, Lost, Order, Outcome
from tenure.work.failures import Failure, FailureClass, failure_of, tail
from tenure.work.hands import CommandState, Hands
from tenure.work.keeper import Keeper
from tenure.work.keys import check_key, effect_key
from tenure.work.ladder import Rung
from tenure.work.minds import Minds
from tenure.work.plan import FOR_EACH_VALUES_MAX, ITEM_CHARS_MAX, NODES_MAX, Effect, RunScript, Work, item_text
from tenure.work.snapshots import may_want_after, restore_points, undone_by, wants_before
from tenure.work.state import Node, Phase, RunState
from tenure.work.template import TemplateError, render

FAILED_OUTPUT_BYTES_MAX = 8192
"""Of the failed step's output, given to its `on_error` script in the environment."""

Append = Callable[..., Awaitable[None]]


@dataclass(frozen=True)
class Office:
    """Where a driver acts, and for which run. `append` commits events to the journal and to the state; `later` runs a chore
    that nothing waits for."""

    hands: Hands
    state: RunState
    append: Append
    later: Callable[[Coroutine[Any, Any, None]], None]
    keeper: Keeper
    minds: Minds
    spent_today: Callable[[str], Awaitable[float]]

    @property
    def desk(self) -> working.Desk:
        return working.Desk(self.hands, self.state, self.append, self.minds, self.spent_today, self.later)


async def attempt(office: Office, node: Node) -> None:
    """Begins the node's effect (intent first), or finds out about the one under way."""
    state, fresh = office.state, node.phase is Phase.PENDING
    try:
        effect = effects.filled_in(node.step.effect, scope_of(state, node))
        env = _environment(state, node)
    except TemplateError as error:
        failure = Failure(kind=FailureClass.USAGE, message=str(error))
        await office.append(e.StepFailed(node=node.id, attempt=node.attempt, failure=failure))
        return
    if fresh:
        number = node.attempt + 1
        turn = office.keeper.turn.alone if wants_before(node) else office.keeper.turn.shared
        async with turn():
            kept = await office.keeper.before(state, node, number)
            if isinstance(kept, Failure):
                await office.append(e.StepFailed(node=node.id, attempt=node.attempt, failure=kept))
                return
            key = effect_key(state.run_id, node.id, number)
            await office.append(*kept, e.StepStarted(node=node.id, attempt=number, key=key))
        env["TENURE_ATTEMPT"] = str(number)
    since = state.seq
    if isinstance(effect, Work) and state.mind.thinks:
        await working.converse(office.desk, node, effect, fresh=fresh)
        return
    outcome = await _outcome(office, node, effect, env, fresh=fresh)
    await _write_outcome(office, node, outcome, since)
    if isinstance(effect, RunScript | Work) and not isinstance(outcome, Blocked | Asks):
        office.later(effects.forget(office.hands, state.agent, node.key))


async def _outcome(office: Office, node: Node, effect: Effect, env: dict[str, str], *, fresh: bool) -> Outcome:
    if isinstance(effect, Work):
        if office.state.settings is None:
            message = "The step is for a brain, and the run has none. `tenure brain set` gives its agent one."
            return Failed(Failure(kind=FailureClass.USAGE, message=message))
        return await working.errand(office.desk, node, effect, env, fresh=fresh)
    began = node.attempt_started_at or datetime.now(UTC)
    order = Order(
        agent=office.state.agent,
        run_id=office.state.run_id,
        key=node.key,
        effect=effect,
        env=env,
        cwd=node.step.cwd,
        timeout_s=node.step.timeout_s,
        due=began + timedelta(seconds=node.step.timeout_s),
        point=node.id,
    )
    return await effects.perform(office.hands, order, fresh=fresh)


async def _write_outcome(office: Office, node: Node, outcome: Outcome, since: int) -> None:
    number = node.attempt
    match outcome:
        case Done() if node.step.verify:
            await office.append(e.EffectDone(node=node.id, attempt=number, result=outcome.result))
        case Done():
            await _succeed(office, node, outcome.result)
        case Failed():
            await office.append(e.StepFailed(node=node.id, attempt=number, failure=outcome.failure))
        case Blocked():
            await office.append(e.StepBlocked(node=node.id, attempt=number, failure=outcome.failure, since_seq=since))
        case Lost():
            await office.append(e.StepUnverified(node=node.id, attempt=number, failure=outcome.failure))
        case Asks():
            await office.append(e.Asked(node=node.id, question=outcome.question))


async def verify(office: Office, node: Node) -> None:
    """Makes the node's checks, in order, up to the first that does not hold."""
    state, since = office.state, office.state.seq
    lost = node.phase is Phase.UNVERIFIED
    held: list[str] = []
    for index, check in enumerate(node.step.verify):
        order = Order(
            agent=state.agent,
            run_id=state.run_id,
            key=check_key(state.run_id, node, index),
            effect=node.step.effect,
            env=_environment(state, node),
            cwd=node.step.cwd,
            timeout_s=node.step.timeout_s,
            due=datetime.now(UTC) + timedelta(seconds=node.step.timeout_s),
            point=f"{node.id}/{index}",
        )
        try:
            found = await checks.make(office.hands, order, check, scope_of(state, node))
        except TemplateError as error:
            found = Failed(Failure(kind=FailureClass.USAGE, message=str(error)))
        if isinstance(found, Blocked):
            await office.append(
                e.StepBlocked(node=node.id, attempt=node.attempt, failure=found.failure, since_seq=since)
            )
            return
        if isinstance(found, Failed):
            failure = found.failure
            if lost and failure.kind is FailureClass.VERIFICATION:
                message = f"Its sandbox ended under it, and the effect is not there. {failure.message}"
                failure = Failure(kind=FailureClass.LOST, message=message, evidence=failure.evidence)
            elif not failure.evidence:
                failure = failure.model_copy(update={"evidence": node.result.output})
            await office.append(e.StepFailed(node=node.id, attempt=node.attempt, failure=failure))
            return
        held.append(found)
    evidence = tail("\n".join(["verified after its outcome was lost"] * lost + held))
    await _succeed(office, node, node.result, evidence)


async def _succeed(office: Office, node: Node, result: e.Result, evidence: str = "") -> None:
    """The step's result and the snapshot that belongs to it are written together."""
    turn = office.keeper.turn.alone if may_want_after(node.step) else office.keeper.turn.shared
    async with turn():
        taken, complaint = await office.keeper.after(office.state, node)
        said = tail("\n".join(text for text in (evidence, complaint) if text))
        await office.append(*taken, e.StepSucceeded(node=node.id, attempt=node.attempt, result=result, evidence=said))


async def expand(office: Office, node: Node) -> None:
    """Asks for the values of the node's `for_each`."""
    state, since, query = office.state, office.state.seq, (node.step.for_each.sql if node.step.for_each else None)
    failure: Failure | None = None
    try:
        statement = render(query or "", scope_of(state, node))
        found = await office.hands.sql(state.agent, statement, rows_max=FOR_EACH_VALUES_MAX + 1)
        values = [item_text(row[0]) for row in found.rows if row]
        problem = _unusable(values, NODES_MAX - len(state.nodes))
        if problem is None:
            await office.append(e.StepExpanded(node=node.id, values=tuple(values)))
            return
        failure = Failure(kind=FailureClass.COMMAND, message=problem, evidence=statement)
    except LeaseLost:
        raise
    except TemplateError as error:
        failure = Failure(kind=FailureClass.USAGE, message=str(error))
    except Exception as error:  # noqa: BLE001 - whatever it is, the ladder has to hear of it
        failure = failure_of(error, query or "")
        if failure.kind in (FailureClass.DOOR, FailureClass.SANDBOX):
            await office.append(e.StepBlocked(node=node.id, attempt=0, failure=failure, since_seq=since))
            return
    await office.append(e.StepFailed(node=node.id, attempt=0, failure=failure))


def _unusable(values: list[str], nodes_free: int) -> str | None:
    if len(values) > min(FOR_EACH_VALUES_MAX, nodes_free):
        return f"for_each gave more than {min(FOR_EACH_VALUES_MAX, nodes_free)} values."
    if any(len(value) > ITEM_CHARS_MAX for value in values):
        return f"for_each gave a value longer than {ITEM_CHARS_MAX} characters."
    if len(set(values)) != len(values):
        return "for_each gave the same value twice."
    return None


async def mend(office: Office, node: Node) -> None:
    """Carries out the rung that the node is on."""
    rung, key = node.rung, node.rung_key
    if rung is Rung.SELF_CORRECT:
        ok, evidence = await _self_correct(office, node)
    else:
        ok, evidence = await _recover_office(office, node, rung)
    await office.append(e.RungDone(node=node.id, rung=int(rung or 0), ok=ok, evidence=tail(evidence)))
    if key:
        office.later(effects.forget(office.hands, office.state.agent, key))


async def _self_correct(office: Office, node: Node) -> tuple[bool, str]:
    state, failure = office.state, node.failure
    try:
        script = render(node.step.on_error or "", scope_of(state, node))
    except TemplateError as error:
        return False, str(error)
    env = _environment(state, node) | {
        "TENURE_FAILED_STEP": node.id,
        "TENURE_FAILED_REASON": failure.message if failure else "",
        "TENURE_FAILED_OUTPUT": tail(failure.evidence if failure else "", FAILED_OUTPUT_BYTES_MAX),
        "TENURE_FAILED_EXIT_CODE": str(failure.exit_code if failure and failure.exit_code is not None else ""),
    }
    order = Order(
        agent=state.agent,
        run_id=state.run_id,
        key=node.rung_key,
        effect=RunScript(script=script),
        env={name: value.replace("\x00", "") for name, value in env.items()},
        cwd=node.step.cwd,
        timeout_s=node.step.timeout_s,
        due=datetime.now(UTC) + timedelta(seconds=node.step.timeout_s),
        point=f"{node.id}/on_error",
    )
    outcome = await effects.perform(office.hands, order, fresh=False)
    match outcome:
        case Done():
            return True, outcome.result.output
        case Failed() | Blocked() | Lost():
            return False, f"on_error: {outcome.failure.message}\n{outcome.failure.evidence}"
        case Asks():
            raise AssertionError("a script asks nobody")


async def _recover_office(office: Office, node: Node, rung: Rung | None) -> tuple[bool, str]:
    """Reconnects, restarts or rebuilds, then asks whether the office answers: that is the verified progress of these rungs."""
    agent, what, before = office.state.agent, (rung or Rung.RECONNECT).name.lower(), ""
    try:
        reach(f"effect.{what}.before/{node.id}")
        match rung:
            case Rung.REBUILD:
                before = f"; before: {await office.hands.rebuild(agent)}"
            case Rung.RESTART:
                await office.hands.restart(agent)
            case _:
                await office.hands.reconnect(agent)
        reach(f"effect.{what}.after/{node.id}")
    except LeaseLost:
        raise
    except Exception as error:  # noqa: BLE001 - the next rung has to hear of it
        return False, f"{what}: {failure_of(error).message}"
    ok = await office.hands.probe(agent)
    return ok, ("the office answers" if ok else f"after the {what} the office does not answer") + before


async def restore(office: Office, node: Node) -> None:
    """Rung 6: puts the office back to the newest snapshot that there still is of those to which the run may go back, and writes
    which steps begin anew by that. Nothing else is under way."""
    state = office.state
    gone: list[str] = []
    for to in restore_points(state):
        try:
            reach(f"effect.restore.before/{node.id}")
            before = await office.hands.restore(state.agent, to.id, key=node.rung_key, run_id=state.run_id)
            reach(f"effect.restore.after/{node.id}")
        except LeaseLost:
            raise
        except NotFound:
            gone.append(to.id)
            continue
        except Exception as error:  # noqa: BLE001 - the next rung has to hear of it
            await _restored(office, node, ok=False, evidence=f"restore: {failure_of(error).message}")
            return
        undone = undone_by(state, to)
        evidence = f"the office is as it was at {to.id}; before: {before}; again: {', '.join(undone) or 'nothing'}"
        event = e.OfficeRestored(node=node.id, snapshot=to.id, before=before, to_seq=to.seq, undone=tuple(undone))
        await _restored(office, node, event, ok=True, evidence=evidence)
        return
    await _restored(office, node, ok=False, evidence=f"no snapshot is left to go back to (gone: {', '.join(gone)})")


async def _restored(office: Office, node: Node, *events: e.OfficeRestored, ok: bool, evidence: str) -> None:
    done = e.RungDone(node=node.id, rung=int(Rung.RESTORE), ok=ok, evidence=tail(evidence))
    await office.append(done, *events)


async def halt(office: Office, commands: tuple[tuple[str, str], ...]) -> None:
    """Ends what still runs of a cancelled run. An office that does not answer does not keep the run from being cancelled."""
    for node_id, key in commands:
        node = office.state.nodes[node_id]
        if isinstance(node.step.effect, Work):
            try:
                await working.halt(office.desk, node, node.step.effect)
            except LeaseLost:
                raise
            except Exception:  # noqa: BLE001 - see above
                continue
        for running in (key, node.rung_key):
            if not running or (running == key and node.step.effect.kind != "run"):
                continue
            try:
                status = await office.hands.command_status(office.state.agent, running)
                if status.state is CommandState.RUNNING:
                    await office.hands.stop_command(office.state.agent, running)
            except LeaseLost:
                raise
            except Exception:  # noqa: BLE001 - see above
                continue


def _environment(state: RunState, node: Node) -> dict[str, str]:
    """What the step's scripts find in their environment. Raises `TemplateError`."""
    scope = scope_of(state, node)
    given = {**(state.plan.env if state.plan else {}), **node.step.env}
    own = {
        "TENURE_RUN": state.run_id,
        "TENURE_STEP": node.step.id,
        "TENURE_GOAL": state.goal,
        "TENURE_ATTEMPT": str(node.attempt),
    }
    if node.item is not None:
        own["TENURE_ITEM"] = node.item
    if state.answer:
        own["TENURE_ANSWER"] = state.answer
    return {name: render(value, scope) for name, value in given.items()} | own
