"""`ProcessProgram`: any program of the office as a brain.

It runs as a keyed command, so that it outlives the worker that started it. It is started again under the next key of the same
attempt (a *leg*) after a person answered its question, and after it was ended because the worker had to go.
"""

from __future__ import annotations

import asyncio
import contextlib
import shlex
import time
from collections.abc import Callable, Mapping
from typing import Any

from tenure.brains import errands
from tenure.brains.base import Errand
from tenure.brains.errands import Reporting, Spending
from tenure.brains.process.pulse import BEATS_MISSED_MAX, Pulse
from tenure.errors import InvalidArgument, LeaseLost, NotFound, TenureError
from tenure.faultpoints import reach
from tenure.wire import ProgramQuestion
from tenure.work.effects import Asks, Blocked, Done, Failed, Lost, Outcome, result_of
from tenure.work.failures import Failure, FailureClass, failure_of, is_definite, says_disk_full
from tenure.work.hands import Command, CommandState, CommandStatus, Signals
from tenure.work.plan import Plan
from tenure.work.thoughts import Question

ASK_EXIT_CODE = 75
"""With it a program that asked a question ends, to be started again with the answer. (sysexits.h: try again later)"""
LOOK_S = 2.0
"""Between two looks at what the program told of itself, and, in the beginning, between two reports of it."""
GAP_LOOKS = 3
"""A look that comes later than so many others is taken to be that late."""
LEAVE_S = 10.0
"""How long ending the program may take when the worker has to go."""
HEARTBEAT_SETTING = "TENURE_HEARTBEAT_S"


class ProcessProgram:
    """A `Brain` and a `Program`. `look_s` and `clock` are for tests."""

    name = "process"

    def __init__(self, *, look_s: float = LOOK_S, clock: Callable[[], float] = time.monotonic) -> None:
        self._look_s, self._clock = look_s, clock

    def plan(self, goal: str, inputs: Mapping[str, Any]) -> Plan:
        return errands.one_step(goal, inputs)

    async def carry(self, errand: Errand) -> Outcome:
        """See `Program.carry`. `errand.timeout_s` ends nothing: a program that is well may take as long as it takes, one that is
        not tells by its heartbeats."""
        try:
            return await self._carry(errand)
        except LeaseLost:
            raise
        except Exception as error:  # noqa: BLE001 - whatever it is, the ladder has to hear of it
            failure = failure_of(error)
            return Failed(failure) if is_definite(error) else Blocked(failure)

    async def _carry(self, errand: Errand) -> Outcome:
        if (refused := errands.refusal(errand, self.name)) is not None:
            return Failed(refused)
        if (question := errands.unanswered(errand)) is not None:
            return Asks(question)
        promised_s = _promised_s(errand.settings.env)
        leg = Leg(errand, self._look_s, self._clock)
        await leg.start()
        try:
            return await leg.to_end(Pulse(promised_s, GAP_LOOKS * self._look_s))
        except asyncio.CancelledError:
            await leg.leave()
            raise

    async def halt(self, errand: Errand) -> None:
        """Ends whatever runs of an attempt whose worker died, when nobody will carry it on. Raises what `Hands` raises."""
        for number in range(_legs_over(errand) + 1):
            await errand.hands.stop_command(errand.agent, leg_key(errand.key, number))


def leg_key(key: str, number: int) -> str:
    return key if number == 0 else f"{key}.{number}"


class Leg:
    """One start of the program, from its checkpoint on."""

    def __init__(self, errand: Errand, look_s: float, clock: Callable[[], float]) -> None:
        self._errand, self._look_s, self._clock = errand, look_s, clock
        self._hands, self._agent = errand.hands, errand.agent
        self._number = _legs_over(errand)
        self.key = leg_key(errand.key, self._number)
        self._reporting = Reporting(errand, look_s)
        self._spending = Spending(errand, self._reporting, self.key)
        self._checkpoint = next((r.data for r in reversed(errand.reports) if r.what == "checkpoint"), None)
        self._told = Signals(checkpoint=self._checkpoint)
        """What the journal has of it."""

    async def start(self) -> None:
        """Unless it was started by a worker before this one."""
        if self._number:
            await self._end_previous(leg_key(self._errand.key, self._number - 1))
        await self._hands.open_signals(self._agent, self.key, self._checkpoint)
        reach(f"process.start.before/{self._errand.node}")
        await self._hands.start_command(self._agent, self.key, self._command())
        reach(f"process.start.after/{self._errand.node}")

    async def _end_previous(self, key: str) -> None:
        """The worker that ended it may have died before it was ended."""
        await self._hands.stop_command(self._agent, key)
        with contextlib.suppress(NotFound):
            told = await self._hands.signals(self._agent, key)
            await self._report(told, last=True, spending=Spending(self._errand, self._reporting, key))
        await self._hands.forget_command(self._agent, key)
        self._checkpoint = self._told.checkpoint

    def _command(self) -> Command:
        # The office knows where its API is; what is relative to that is put together there.
        work = f'"$TENURE_URL/work/{self.key}"'
        script = (
            f"export TENURE_WORK_URL={work}\n"
            'export TENURE_CHECKPOINT_URL="$TENURE_WORK_URL/checkpoint"\n'
            f"exec {shlex.join(self._errand.settings.command)}\n"
        )
        return Command(script, errands.environment(self._errand))

    async def to_end(self, pulse: Pulse) -> Outcome:
        while True:
            status = await self._hands.command_status(self._agent, self.key, wait_s=self._look_s)
            told = await self._signals()
            spent = await self._report(told, last=status.state is not CommandState.RUNNING)
            if status.state is not CommandState.RUNNING:
                return await self._outcome(status, told)
            if spent and (failure := await self._errand.over_budget()) is not None:
                await self._stop()
                return Blocked(failure)
            pulse.look(told, self._clock())
            if pulse.is_missed:
                return await self._end_silent(pulse)

    async def _signals(self) -> Signals:
        try:
            return await self._hands.signals(self._agent, self.key)
        except NotFound:
            await self._hands.open_signals(self._agent, self.key, self._told.checkpoint)
            return await self._hands.signals(self._agent, self.key)

    async def _report(self, told: Signals, *, last: bool, spending: Spending | None = None) -> bool:
        """What is new since the last report; when it is the `last`, at once. Whether it took more."""
        now_s = self._clock()
        if not (last or self._reporting.is_due(now_s)):
            return False
        if told.checkpoint is not None and told.checkpoint != self._told.checkpoint:
            await self._reporting.tell("checkpoint", told.checkpoint, now_s)
        if told.progress and told.progress != self._told.progress:
            await self._reporting.tell("progress", told.progress, now_s)
        self._told = told
        return told.usage is not None and await (spending or self._spending).tell(told.usage)

    async def _outcome(self, status: CommandStatus, told: Signals) -> Outcome:
        result = result_of(status)
        if status.state is CommandState.LOST:
            return self._lost(told, result.output)
        if status.exit_code == ASK_EXIT_CODE and told.question is not None:
            return await self._ask(ProgramQuestion.model_validate(told.question))
        if status.exit_code != 0:
            kind = FailureClass.DISK_FULL if says_disk_full(result.output) else FailureClass.COMMAND
            message = f"The program exited with {status.exit_code}."
            return Failed(
                Failure(kind=kind, message=message, evidence=result.output, exit_code=status.exit_code), result
            )
        return Done(result)

    def _lost(self, told: Signals, output: str) -> Outcome:
        message = "The sandbox ended while the program ran."
        if told.checkpoint is None:
            message = f"{message} Whether it did what it should is unknown."
            return Lost(Failure(kind=FailureClass.LOST, message=message, evidence=output))
        message = f"{message} It is started again from its checkpoint."
        return Failed(Failure(kind=FailureClass.LOST, message=message, evidence=output))

    async def _ask(self, asked: ProgramQuestion) -> Outcome:
        question = Question(
            id=f"{self.key}.{asked.name}",
            text=asked.text,
            options=asked.options or (("yes", "no") if asked.approval else ()),
            evidence=asked.evidence,
            approval=asked.approval,
        )
        reach(f"process.ask.before/{self._errand.node}")
        await self._reporting.must_tell(
            "asked", {"key": self._errand.key, "name": asked.name, "question": question.model_dump(mode="json")}
        )
        reach(f"process.ask.after/{self._errand.node}")
        return Asks(question)

    async def _end_silent(self, pulse: Pulse) -> Outcome:
        message = (
            f"The program told nothing for {pulse.silent_s:.0f} s, though it promised a heartbeat every "
            f"{pulse.every_s:g} s; {BEATS_MISSED_MAX} of them were missed."
        )
        if not await self._hands.probe(self._agent):
            failure = Failure(kind=FailureClass.SANDBOX, message=f"{message} The office does not answer.")
            return Blocked(failure)
        await self._hands.stop_command(self._agent, self.key)
        status = await self._hands.command_status(self._agent, self.key)
        told = await self._signals()
        await self._report(told, last=True)
        if status.exit_code in (0, ASK_EXIT_CODE) or status.state is CommandState.LOST:
            return await self._outcome(status, told)  # it had just ended by itself
        result = result_of(status)
        evidence = "\n".join(part for part in (f"Last progress: {told.progress}"[:2000], result.output) if part)
        failure = Failure(
            kind=FailureClass.TIMEOUT,
            message=f"{message} It was ended.",
            evidence=evidence,
            exit_code=status.exit_code,
        )
        return Failed(failure, result)

    async def leave(self) -> None:
        """Ends the program, since this worker has to go: another one starts it again from its checkpoint. Not when the run is
        another worker's already: then it is that one's program, too."""
        try:
            async with asyncio.timeout(LEAVE_S):
                await self._report(await self._signals(), last=True)
                await self._stop()
        except (TenureError, TimeoutError):
            return

    async def _stop(self) -> None:
        """It will not go on under this key."""
        await self._reporting.must_tell("stopped", {"key": self._errand.key, "leg": self._number})
        await self._hands.stop_command(self._agent, self.key)


def _legs_over(errand: Errand) -> int:
    """How many times the program was started before, and will not go on."""
    stopped = {
        int(str(report.data["leg"]))
        for report in errand.reports
        if report.what == "stopped" and isinstance(report.data, dict) and report.data["key"] == errand.key
    }
    answered = [
        data for data in errands.asked(errand) if data["key"] == errand.key and data["question"]["id"] in errand.answers
    ]
    return len(stopped) + len(answered)


def _promised_s(env: Mapping[str, str]) -> float | None:
    """How often the agent's settings say that the program tells of itself. Raises `UsageError`."""
    text = env.get(HEARTBEAT_SETTING, "")
    try:
        seconds = float(text) if text else None
    except ValueError:
        seconds = -1.0
    if seconds is not None and not 0 < seconds < float("inf"):
        raise InvalidArgument(f"{HEARTBEAT_SETTING} is {text[:40]!r}, which is no number of seconds.")
    return seconds
