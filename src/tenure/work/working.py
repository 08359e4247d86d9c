"""A step that a brain does: turn by turn for one that thinks, as one errand for a program of the office.

The journal has each thought before anything of it is done, so a thought is the intent of its tool calls; whoever goes on after
a crash asks for each by its key.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from datetime import time as clock
from fnmatch import fnmatchcase
from functools import partial
from typing import Any

from pydantic import JsonValue

from tenure.brains.base import Errand, Left, Report, StepSummary, Task
from tenure.errors import LeaseLost
from tenure.faultpoints import reach
from tenure.work import effects, replan
from tenure.work import events as e
from tenure.work.effects import Blocked, Failed, Outcome
from tenure.work.failures import Failure, FailureClass, failure_of, tail
from tenure.work.hands import CommandState, Hands
from tenure.work.keys import effect_key
from tenure.work.minds import Minds
from tenure.work.plan import Work
from tenure.work.state import Node, Phase, RunState
from tenure.work.talk import call_id, question_id
from tenure.work.thoughts import Ask, CallResult, CallTools, Finish, Propose, Purpose, Question, Wait
from tenure.work.toolbox import CallOrder

CALLS_AT_ONCE = 8
OUTPUT_SHOWN_BYTES = 2000
"""Of a step's output, in the summary that a brain sees."""
BROKEN_MODEL_S = 300.0
"""How long a model that failed often is not asked where there is another one (the circuit is open)."""
WAIT_S_MAX = 30 * 86400.0

Append = Callable[..., Awaitable[None]]


@dataclass(frozen=True)
class Desk:
    """What thinking needs of a driver. `spent_today` gives dollars of all runs of the agent."""

    hands: Hands
    state: RunState
    append: Append
    minds: Minds
    spent_today: Callable[[str], Awaitable[float]]
    later: Callable[[Coroutine[Any, Any, None]], None]


async def converse(desk: Desk, node: Node, effect: Work, *, fresh: bool) -> None:
    """Goes on with the node's conversation to its end, or to what has to be waited for. `fresh`: what the journal says was
    written by this driver, so nothing of it can be under way elsewhere."""
    attempt, known = node.attempt, 0 if fresh else len(node.talk.turns)
    while node.phase is Phase.RUNNING and node.attempt == attempt and desk.state.nodes.get(node.id) is node:
        decision = node.talk.open_decision
        match decision:
            case Propose():
                await _propose(desk, node, decision)
            case Finish():
                await _finish(desk, node, decision)
            case Ask() | Wait():
                await _rest(desk, node, decision)
            case None if node.talk.pending:
                if not await _call(desk, node, fresh=len(node.talk.turns) > known):
                    return
            case None:
                if (refusal := await _refusal(desk, node)) is not None:
                    await _block(desk, node, refusal)
                    return
                if not await _think(desk, node, effect):
                    return


# --- thinking ------------------------------------------------------------------------------------------------------------
async def _refusal(desk: Desk, node: Node) -> Failure | None:
    """Why the brain is not asked on."""
    if (failure := await _over_budget(desk)) is not None:
        return failure
    state = desk.state
    assert state.settings is not None
    if (stuck := node.talk.stuck()) is not None:
        return Failure(kind=FailureClass.STUCK, message=stuck, evidence=_last_said(node))
    if state.turns_without_progress >= state.settings.budget.turns_without_progress:
        message = f"{state.turns_without_progress} thoughts, and no step's checks held since."
        return Failure(kind=FailureClass.STUCK, message=message, evidence=_last_said(node))
    return None


async def _over_budget(desk: Desk) -> Failure | None:
    """Why no brain of the run may take more."""
    state = desk.state
    assert state.settings is not None
    budget, used, times = state.settings.budget, state.usage, state.grants + 1
    for name, limit, spent in (
        ("tokens", budget.tokens, used.tokens),
        ("requests", budget.requests, used.requests),
        ("dollars", budget.cost_usd, used.cost_usd or 0.0),
    ):
        if limit is not None and spent >= limit * times:
            message = f"The run's budget of {limit * times:g} {name} is spent. An answer `retry` gives as much again."
            return Failure(kind=FailureClass.BUDGET, message=message)
    if budget.agent_day_cost_usd is not None:
        spent_usd = await desk.spent_today(state.agent)
        if spent_usd >= budget.agent_day_cost_usd:
            message = f"{state.agent} spent {spent_usd:.2f} of {budget.agent_day_cost_usd:g} dollars today."
            return Failure(kind=FailureClass.BUDGET, message=message, retry_after_s=_to_midnight_s())
    return None


async def _block(desk: Desk, node: Node, failure: Failure, model: str = "") -> None:
    await desk.append(
        e.StepBlocked(node=node.id, attempt=node.attempt, failure=failure, since_seq=desk.state.seq, model=model)
    )


async def _think(desk: Desk, node: Node, effect: Work) -> bool:
    """Asks for one decision and writes it. False when there is none."""
    state, began_s = desk.state, time.monotonic()
    assert state.settings is not None
    task = task_of(desk, node, effect)
    try:
        thinker = desk.minds.thinker(state.settings)
        reach(f"think.before/{node.id}")
        thought = await thinker.think(task)
        reach(f"think.after/{node.id}")
    except LeaseLost:
        raise
    except Exception as error:  # noqa: BLE001 - whatever it is, the ladder has to hear of it
        await _block(desk, node, failure_of(error), task.model)
        return False
    turn = len(node.talk.turns)
    thinking = e.Thinking(
        node=node.id, attempt=node.attempt, turn=turn, thought=thought, duration_s=time.monotonic() - began_s
    )
    match thought.decision:
        case Ask():
            await desk.append(thinking, _asked(state, node, thought.decision, turn))
        case Wait():
            await desk.append(thinking, _waiting(node, thought.decision))
        case _:
            await desk.append(thinking)
    return node.phase is Phase.RUNNING


def task_of(desk: Desk, node: Node, effect: Work) -> Task:
    """What the brain is asked, by the state of the run."""
    state, purpose = desk.state, node.purpose or Purpose.WORK
    assert state.settings is not None
    assert state.plan is not None
    helped = state.nodes.get(effect.about)
    trouble = ""
    if helped is not None and helped.failure is not None:
        trouble = f"{helped.id}: {helped.failure.message}\n{helped.failure.evidence}".strip()
    checks = node.step.verify if purpose is Purpose.WORK else state.accept
    if purpose is Purpose.MEND and helped is not None:
        checks = helped.step.verify
    left, times = state.settings.budget, state.grants + 1
    return Task(
        run_id=state.run_id,
        agent=state.agent,
        node=node.id,
        purpose=purpose,
        goal=state.goal,
        instructions=effect.instructions or (helped.step.name or helped.id if helped else ""),
        settings=state.settings,
        model=model_of(state, node, datetime.now(UTC)),
        inputs=state.plan.inputs,
        steps=tuple(_summary(one) for one in state.nodes.values() if one is not node and one.helps is None),
        checks=checks,
        trouble=trouble or node.trouble,
        turns=node.talk.shown(),
        tools=desk.minds.tools.specs(purpose),
        left=Left(
            tokens=None if left.tokens is None else left.tokens * times - state.usage.tokens,
            cost_usd=None if left.cost_usd is None else left.cost_usd * times - (state.usage.cost_usd or 0.0),
            requests=None if left.requests is None else left.requests * times - state.usage.requests,
        ),
        context_tokens_max=max(2000, state.settings.context_tokens_max // 2**node.talk.shrinks),
        answer=state.answer,
    )


def model_of(state: RunState, node: Node, now: datetime) -> str:
    """The model to ask: the one that the ladder chose, or the next one that answers."""
    models = state.settings.models if state.settings else ()
    if not models:
        return ""
    ordered = [models[(node.talk.model + n) % len(models)] for n in range(len(models))]
    closed = [one for one in ordered if not _is_broken(state, one, now)]
    return (closed or ordered)[0]


def _is_broken(state: RunState, model: str, now: datetime) -> bool:
    failed_at = state.broken_models.get(model)
    return failed_at is not None and now < failed_at + timedelta(seconds=BROKEN_MODEL_S)


def _summary(node: Node) -> StepSummary:
    what = node.step.name or (node.step.effect.instructions if isinstance(node.step.effect, Work) else "")
    output = node.result.output or (node.failure.message if node.failure else "")
    return StepSummary(node.id, node.phase, what, tail(output, OUTPUT_SHOWN_BYTES), node.step)


def _last_said(node: Node) -> str:
    last = node.talk.last
    if last is None:
        return ""
    said = [last.thought.text, *(result.output for result in last.results if result is not None)]
    return tail("\n".join(part for part in said if part))


def _to_midnight_s() -> float:
    now = datetime.now(UTC)
    midnight = datetime.combine(now.date() + timedelta(days=1), clock(), UTC)
    return (midnight - now).total_seconds()


# --- what it decided -----------------------------------------------------------------------------------------------------
async def _propose(desk: Desk, node: Node, proposal: Propose) -> None:
    state, turn = desk.state, len(node.talk.turns) - 1
    plan = replan.merged(state, proposal.plan, node)
    if isinstance(plan, list):
        refused = CallResult(ok=False, output="The plan was not taken:\n" + "\n".join(f"- {one}" for one in plan))
        await desk.append(_done(node, turn, 0, refused))
        return
    taken = CallResult(ok=True, output="This is the plan now.")
    planned = e.Planned(plan=plan, node=node.id, reason=proposal.reason)
    ends: list[e.AnyEvent] = []
    if node.purpose is not None and node.purpose.plans:
        ends = [e.StepSucceeded(node=node.id, attempt=node.attempt, result=e.Result(output=_plan_text(proposal)))]
    await desk.append(_done(node, turn, 0, taken), *ends, planned)


def _plan_text(proposal: Propose) -> str:
    lines = [f"{step.id}: {step.name}".rstrip(": ") for step in proposal.plan.steps]
    return tail("\n".join([proposal.reason, *lines] if proposal.reason else lines), OUTPUT_SHOWN_BYTES)


async def _finish(desk: Desk, node: Node, finish: Finish) -> None:
    result = e.Result(output=tail(finish.summary))
    if node.step.verify:
        await desk.append(e.EffectDone(node=node.id, attempt=node.attempt, result=result))
    else:
        await desk.append(e.StepSucceeded(node=node.id, attempt=node.attempt, result=result))


async def _rest(desk: Desk, node: Node, decision: Ask | Wait) -> None:
    """For a thought whose consequence the driver before this one did not write."""
    if isinstance(decision, Ask):
        await desk.append(_asked(desk.state, node, decision, len(node.talk.turns) - 1))
    else:
        await desk.append(_waiting(node, decision))


def _asked(state: RunState, node: Node, ask: Ask, turn: int) -> e.Asked:
    expires_at = None if ask.expires_after_s is None else datetime.now(UTC) + timedelta(seconds=ask.expires_after_s)
    name = f"{effect_key(state.run_id, node.id, node.attempt)}:{question_id(turn)}"
    return e.Asked(node=node.id, question=Question(id=name, text=ask.text, options=ask.options, expires_at=expires_at))


def _waiting(node: Node, wait: Wait) -> e.Waiting:
    until = datetime.now(UTC) + timedelta(seconds=min(wait.for_s, WAIT_S_MAX))
    return e.Waiting(node=node.id, until=until, run=wait.run, reason=wait.reason)


def _done(node: Node, turn: int, index: int, result: CallResult) -> e.CallDone:
    return e.CallDone(node=node.id, attempt=node.attempt, turn=turn, index=index, result=result)


# --- tool calls ----------------------------------------------------------------------------------------------------------
async def _call(desk: Desk, node: Node, *, fresh: bool) -> bool:
    """Makes the calls of the last turn that have no result, but for those that a person has to allow first. False when the
    node is not to go on now."""
    turn, last = len(node.talk.turns) - 1, node.talk.last
    assert last is not None
    assert isinstance(last.thought.decision, CallTools)
    calls = last.thought.decision.calls
    ready = [index for index in node.talk.pending if not _needs_leave(desk.state, node, turn, index, calls[index].tool)]
    if not ready:
        questions = [_leave(desk.state, node, turn, index, last.thought.decision) for index in node.talk.pending]
        await desk.append(*(e.Asked(node=node.id, question=question) for question in questions))
        return False
    slots, blocked = asyncio.Semaphore(CALLS_AT_ONCE), list[Failure]()
    barred = _barred(desk, node)
    since = desk.state.seq

    async def one(index: int) -> None:
        call = calls[index]
        order = CallOrder(
            agent=desk.state.agent,
            run_id=desk.state.run_id,
            node=node.id,
            key=f"{effect_key(desk.state.run_id, node.id, node.attempt)}.{call_id(turn, index)}",
            tool=call.tool,
            arguments=call.arguments,
            fresh=fresh,
        )
        if call.tool in barred:
            said = f"{call.tool} is not for {node.purpose}: it changes things. Look with the tools that you were given."
            await desk.append(_done(node, turn, index, CallResult(ok=False, output=said)))
            return
        async with slots:
            reach(f"call.before/{node.id}/{call.tool}")
            found = await desk.minds.tools.call(desk.hands, order)
            reach(f"call.after/{node.id}/{call.tool}")
        if isinstance(found, Blocked):
            blocked.append(found.failure)
        else:
            await desk.append(_done(node, turn, index, found))
            desk.later(effects.forget(desk.hands, order.agent, order.key))

    await _all(one(index) for index in ready)
    if blocked:
        failed = e.StepBlocked(node=node.id, attempt=node.attempt, failure=blocked[0], since_seq=since)
        await desk.append(failed)
    return not blocked


def _barred(desk: Desk, node: Node) -> set[str]:
    """Tools that there are, but not for what the brain is asked now: it may have made the call up."""
    purpose = node.purpose or Purpose.WORK
    offered = {spec.name for spec in desk.minds.tools.specs(purpose)}
    return {spec.name for spec in desk.minds.tools.specs(Purpose.WORK)} - offered


async def _all(works: Iterable[Coroutine[Any, Any, None]]) -> None:
    """All of them; when one raises, or we are cancelled, none goes on."""
    tasks = [asyncio.create_task(work) for work in works]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _needs_leave(state: RunState, node: Node, turn: int, index: int, tool: str) -> bool:
    patterns = state.settings.approve if state.settings else ()
    return call_id(turn, index) not in node.talk.allowed and any(fnmatchcase(tool, pattern) for pattern in patterns)


def _leave(state: RunState, node: Node, turn: int, index: int, decision: CallTools) -> Question:
    call = decision.calls[index]
    return Question(
        id=f"{effect_key(state.run_id, node.id, node.attempt)}:{call_id(turn, index)}",
        text=f"{node.id}: may {state.agent} use {call.tool}?",
        options=("yes", "no"),
        evidence=tail(call.model_dump_json(indent=2)),
        approval=True,
    )


# --- programs ------------------------------------------------------------------------------------------------------------
async def errand(desk: Desk, node: Node, effect: Work, env: dict[str, str], *, fresh: bool) -> Outcome:
    """Sends the run's program on its errand. Raises only `LeaseLost`."""
    assert desk.state.settings is not None
    try:
        program, sent = desk.minds.program(desk.state.settings), _errand_of(desk, node, effect, env, fresh=fresh)
        if (failure := await _over_budget(desk)) is not None:
            await program.halt(sent)  # one that runs would go on to spend
            return Blocked(failure)
        return await program.carry(sent)
    except LeaseLost:
        raise
    except Exception as error:  # noqa: BLE001 - whatever it is, the ladder has to hear of it
        return Failed(failure_of(error))


async def halt(desk: Desk, node: Node, effect: Work) -> None:
    """Ends what still runs of the node's attempt, when the run is cancelled. Raises what `Hands` raises."""
    if desk.state.settings is None:
        return
    if not desk.state.mind.thinks:
        await desk.minds.program(desk.state.settings).halt(_errand_of(desk, node, effect, {}, fresh=False))
        return
    turn = len(node.talk.turns) - 1
    for index in node.talk.pending:
        key = f"{node.key}.{call_id(turn, index)}"
        if (await desk.hands.command_status(desk.state.agent, key)).state is CommandState.RUNNING:
            await desk.hands.stop_command(desk.state.agent, key)


def _errand_of(desk: Desk, node: Node, effect: Work, env: dict[str, str], *, fresh: bool) -> Errand:
    state = desk.state
    assert state.settings is not None

    async def report(what: str, data: JsonValue) -> None:
        await desk.append(e.Reported(node=node.id, attempt=node.attempt, what=what, data=data))

    return Errand(
        hands=desk.hands,
        run_id=state.run_id,
        agent=state.agent,
        node=node.id,
        attempt=node.attempt,
        key=node.key,
        purpose=node.purpose or Purpose.WORK,
        goal=state.goal,
        instructions=effect.instructions,
        settings=state.settings,
        env=env,
        timeout_s=node.step.timeout_s,
        fresh=fresh,
        reports=tuple(Report(one.what, one.data) for _, one in node.reports),
        trouble=node.trouble,
        answers=dict(node.answers),
        report=report,
        over_budget=partial(_over_budget, desk),
    )
