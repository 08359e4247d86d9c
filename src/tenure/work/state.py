"""A run's state: its journal, folded. Nothing else knows more about a run than this."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum

from tenure.work import events as e
from tenure.work.failures import Failure, FailureClass
from tenure.work.ladder import MODEL_TRIES_EACH, Mind, Rung
from tenure.work.plan import Check, Notify, Plan, PlanStep, Work, node_id
from tenure.work.snapshots import StepSnapshot
from tenure.work.talk import Talk, call_id, is_yes
from tenure.work.thoughts import NOTHING, USAGE_REPORT, BrainSettings, CallTools, Purpose, Question, Usage

ANSWERS = ("retry", "accept", "skip", "fail")


class Phase(StrEnum):
    PENDING = "pending"
    """Not begun, or begun anew after an attempt that failed for certain."""
    RUNNING = "running"
    """Intent is written: the effect may be happening, or may be over, or was never begun."""
    EFFECTED = "effected"
    UNVERIFIED = "unverified"
    FAILED = "failed"
    """The ladder has to say what follows."""
    MENDING = "mending"
    WAITING = "waiting"
    """For an answer, a time, another run: nothing is done for it meanwhile."""
    ASKING = "asking"
    SUCCEEDED = "succeeded"
    SKIPPED = "skipped"

    @property
    def over(self) -> bool:
        return self in (Phase.SUCCEEDED, Phase.SKIPPED)

    @property
    def active(self) -> bool:
        return self in (Phase.RUNNING, Phase.EFFECTED, Phase.UNVERIFIED, Phase.FAILED, Phase.MENDING)


@dataclass
class Node:
    """A step of the plan, or one value of a step's `for_each`."""

    id: str
    step: PlanStep
    item: str | None = None
    expands: bool = False
    """It stands for a `for_each` whose query was not run yet."""
    begun: bool = False
    """Whether the office may have something of it: from its first attempt on, until a restore undoes it."""
    phase: Phase = Phase.PENDING
    resume: Phase = Phase.PENDING
    """Where a recovery leads back to: PENDING is a new attempt, anything else asks on about the same one."""
    attempt: int = 0
    """Counts on when a restore undid the ones before."""
    key: str = ""
    not_before: datetime | None = None
    failure: Failure | None = None
    blocked_since: int | None = None
    """Journal length when the call that the office failed began, or the attempt that found its disk full; None when the step
    itself failed."""
    rung: Rung | None = None
    rung_key: str = ""
    spent: Counter[Rung] = field(default_factory=Counter[Rung])
    rungs: list[int] = field(default_factory=list[int])
    result: e.Result = field(default_factory=e.Result)
    begun_seq: int = 0
    """Where the journal says that the latest attempt began."""
    attempt_started_at: datetime | None = None
    started_at: datetime | None = None
    finished_at: datetime | None = None
    over_seq: int | None = None
    """Where the journal says that it is over."""
    waived: bool = False
    """No restore changes that it is over: the owner wants it skipped, or it left nothing in the office."""
    talk: Talk = field(default_factory=Talk)
    """What the brain thought and did in the latest attempt."""
    helper: str | None = None
    """The node by which a brain mends this one, or finds another plan."""
    questions: dict[str, Question] = field(default_factory=dict[str, Question])
    """Those that are open."""
    answers: dict[str, str] = field(default_factory=dict[str, str])
    approved: bool = False
    waits_for: str | None = None
    """The run for whose end it waits."""
    trouble: str = ""
    """What the attempt before came to, for a program."""
    reports: list[tuple[int, e.Reported]] = field(default_factory=list[tuple[int, e.Reported]])
    """With the `seq` of each, in order: of its attempts, but for what a restore undid."""
    usage: Usage = NOTHING
    """Of all its attempts."""

    @property
    def works(self) -> bool:
        return isinstance(self.step.effect, Work)

    @property
    def purpose(self) -> Purpose | None:
        """Why the brain is asked; None for a step without one."""
        return Purpose(self.step.effect.purpose) if isinstance(self.step.effect, Work) else None

    @property
    def helps(self) -> str | None:
        """The node for whose sake it is there."""
        return (self.step.effect.about or None) if isinstance(self.step.effect, Work) else None


@dataclass(frozen=True)
class Origin:
    """Of which run, step and moment a run is a fork."""

    run: str
    step: str
    before: bool
    snapshot: str
    seq: int


@dataclass
class RunState:
    """What `fold` builds. `outcome` is None while the run is not over."""

    run_id: str
    agent: str = ""
    goal: str = ""
    plan: Plan | None = None
    nodes: dict[str, Node] = field(default_factory=dict[str, Node])
    nodes_of: dict[str, list[str]] = field(default_factory=dict[str, list[str]])
    seq: int = 0
    outcome: str | None = None
    error: str | None = None
    parked: bool = False
    cancel_requested: bool = False
    answer: str = ""
    refused: str | None = None
    """The owner answered that the run shall fail."""
    run_spent: Counter[Rung] = field(default_factory=Counter[Rung])
    settings: BrainSettings | None = None
    accept: tuple[Check, ...] = ()
    parent: str | None = None
    helpers: int = 0
    """How many nodes were added to help others."""
    usage: Usage = NOTHING
    """What the brain took so far."""
    grants: int = 0
    """How often the owner gave the budget once more."""
    turns_without_progress: int = 0
    model_failures: Counter[str] = field(default_factory=Counter[str])
    """In a row, by model."""
    broken_models: dict[str, datetime] = field(default_factory=dict[str, datetime])
    """Models that failed often, and when they last did."""
    asked: dict[str, str] = field(default_factory=dict[str, str])
    """Open questions, and their nodes."""
    answered: dict[str, tuple[str, str]] = field(default_factory=dict[str, tuple[str, str]])
    """(answer, by whom) of those that were answered."""
    ever_asked: set[str] = field(default_factory=set[str])
    """Every question there was: the ones that are in neither of those two were dropped, or asked anew of somebody else."""
    ended_runs: dict[str, e.SubGoalEnded] = field(default_factory=dict[str, e.SubGoalEnded])
    park_until: datetime | None = None
    mended_seq: int = 0
    """Journal position of the last successful recovery of the office."""
    proven: set[str] = field(default_factory=set[str])
    """Nodes that succeeded once: a restore may undo it, but it is no new ground when they do so again."""
    snapshots: list[StepSnapshot] = field(default_factory=list[StepSnapshot])
    """Those around its steps, in the order of their moments. Some may have been pruned by now."""
    restored: list[tuple[str, str]] = field(default_factory=list[tuple[str, str]])
    """(snapshot, one of what was there before) of every restore."""
    expanded: dict[str, int] = field(default_factory=dict[str, int])
    """Where the journal says which values a step's query gave."""
    origin: Origin | None = None
    attempts: dict[str, int] = field(default_factory=dict[str, int])
    """Of each node that ever began, whether or not it is there now."""
    claims_in_a_row: int = 0
    """Workers that took the run, one after the other, without anything else being written."""
    unforgotten: list[str] = field(default_factory=list[str])
    """Keys of commands whose results were written under the present claim."""
    leftover: list[str] = field(default_factory=list[str])
    """Keys of commands that the claim before this one may not have got to forget."""

    def done(self, step_id: str) -> bool:
        """Also one that the plan has no more: what needed it has begun with it."""
        return all(self.nodes[node].phase.over for node in self.nodes_of.get(step_id, ()))

    @property
    def asks_owner(self) -> bool:
        """Whether some step came to the end of its ladder."""
        return bool(self._asking())

    @property
    def mind(self) -> Mind:
        """What the run's brain can do about failures."""
        thinks = self.settings is not None and self.settings.thinks
        return Mind(len(self.settings.models) if self.settings and thinks else 0, thinks)

    def outputs(self) -> Mapping[str, str]:
        """Of every step that is done; a `for_each` gives its nodes' outputs, a line each. Made as they are looked for: most steps
        name none."""
        return _Outputs(self)

    def summary(self) -> str:
        """What the steps gave that nothing else of the plan needs: its results."""
        needed = {need for node in self.nodes.values() for need in node.step.needs}
        ends = [node for node in self.nodes.values() if node.step.id not in needed and node.result.output]
        return "\n".join(
            f"{node.id}: {node.result.output}"
            for node in ends
            if node.helps is None and not (node.purpose or Purpose.WORK).plans
        )

    def apply(self, record: e.Record) -> None:
        """Takes one more record, in order of `seq`."""
        self.seq = record.seq
        event = record.event
        self.claims_in_a_row = self.claims_in_a_row + 1 if isinstance(event, e.RunClaimed) else 0
        if isinstance(event, _NODE_EVENTS):
            self._apply_to_node(self.nodes[event.node], event, record)
            return
        match event:
            case e.RunCreated():
                self.agent, self.goal = event.agent, event.goal
                self.settings, self.accept, self.parent = event.settings, event.accept, event.parent
            case e.Planned():
                if self.plan is None:
                    self._set_plan(event.plan)
                else:
                    self._change_plan(event.plan)
            case e.RunClaimed():
                self.leftover, self.unforgotten = self.unforgotten, []
                self.parked, self.park_until = False, None
            case e.Forked():
                self._fork(event)
            case e.OfficeRestored():
                self._restore(event, record.seq)
            case e.Parked():
                self.parked, self.park_until = True, event.until
            case e.QuestionAnswered():
                self._answer_question(event)
            case e.SubGoalEnded():
                self._end_sub_goal(event)
            case e.Answered():
                self._answer(event.answer, record)
            case e.CancelRequested():
                self.cancel_requested = True
            case e.RunSucceeded():
                self.outcome = "succeeded"
            case e.RunFailed():
                self.outcome, self.error = "failed", event.reason
            case e.RunCancelled():
                self.outcome = "cancelled"

    # --- the plan ------------------------------------------------------------------------------------------------
    def _set_plan(self, plan: Plan) -> None:
        self.plan = plan
        for step in plan.steps:
            if step.for_each is not None and step.for_each.values is None:
                self._add_nodes(step, [None], expands=True)
            else:
                self._add_nodes(step, [None] if step.for_each is None else list(step.for_each.values or ()))

    def _add_nodes(self, step: PlanStep, items: Iterable[str | None], *, expands: bool = False) -> None:
        nodes = [Node(node_id(step.id, item), step, item, expands) for item in items]
        for node in nodes:
            node.attempt = self.attempts.get(node.id, 0)
        self.nodes_of[step.id] = [node.id for node in nodes]
        self.nodes.update({node.id: node for node in nodes})

    # --- going back, and elsewhere ---------------------------------------------------------------------------------
    def _restore(self, event: e.OfficeRestored, seq: int) -> None:
        self.restored.append((event.snapshot, event.before))
        self.mended_seq = seq
        for one in self.snapshots:
            one.is_current = one.is_current and one.seq < event.to_seq  # so the next restore goes back further
        for name in event.undone:
            self._undo(self.nodes[name], event.to_seq)
        for step_id, expanded_seq in list(self.expanded.items()):
            if expanded_seq > event.to_seq:  # the query may give other values now
                del self.expanded[step_id]
                for name in self.nodes_of[step_id]:
                    del self.nodes[name]
                self._add_nodes(self._step(step_id), [None], expands=True)

    def _change_plan(self, plan: Plan) -> None:
        """What is done or under way stays as it is, helpers included; the rest is as in the new plan."""
        before, before_of = self.nodes, self.nodes_of
        self.nodes, self.nodes_of = {}, {}
        self._set_plan(plan)
        for step_id, names in before_of.items():
            kept = [before[name] for name in names]
            planned = next((step for step in plan.steps if step.id == step_id), None)
            if planned is None and not any(node.helps for node in kept):
                continue
            if planned is None or (any(stays(node) for node in kept) and kept[0].step == planned):
                for name in self.nodes_of.get(step_id, ()):
                    del self.nodes[name]
                self.nodes_of[step_id] = names
                self.nodes.update({node.id: node for node in kept})
        self.expanded = {
            step_id: seq
            for step_id, seq in self.expanded.items()
            if any(self.nodes.get(name) is before.get(name) for name in self.nodes_of.get(step_id, ()))
        }
        self.asked = {question: name for question, name in self.asked.items() if name in self.nodes}

    def _step(self, step_id: str) -> PlanStep:
        assert self.plan is not None
        return next(step for step in self.plan.steps if step.id == step_id)

    def _undo(self, node: Node, to_seq: int) -> None:
        # What a program told later, it told of an office that is gone: it must not go on from there.
        node.reports = [(seq, report) for seq, report in node.reports if seq <= to_seq]
        if node.phase.over:
            node.spent.clear()  # it had come through
        elif isinstance(node.step.effect, Notify):
            node.attempt -= 1  # so that it has the same key again: a message is not in the office, and is left once
            self.attempts[node.id] = node.attempt
        node.spent.pop(Rung.ASK, None)
        node.phase = node.resume = Phase.PENDING
        node.begun, node.over_seq = False, None
        node.key, node.not_before, node.blocked_since = "", None, None
        node.rung, node.rung_key = None, ""
        node.failure, node.result = None, e.Result()
        for question in node.questions:
            self.asked.pop(question, None)
        node.questions, node.helper, node.waits_for, node.talk = {}, None, None, Talk()
        node.attempt_started_at = node.started_at = node.finished_at = None

    def _fork(self, event: e.Forked) -> None:
        self.agent = event.agent
        self.origin = Origin(event.run, event.step, event.before, event.snapshot, event.seq)
        self.snapshots.clear()  # they are of the other office
        self.parked = self.cancel_requested = False
        self.answer, self.refused, self.claims_in_a_row = "", None, 0
        self.leftover, self.unforgotten = [], []
        self._begin_anew()
        for node in self.nodes.values():
            if node.questions:  # they are the other run's: this one asks its own
                node.questions, node.phase = {}, node.resume
        self.asked.clear()
        if event.plan is not None:
            before, before_of = self.nodes, self.nodes_of
            self.nodes, self.nodes_of = {}, {}
            self._set_plan(event.plan)
            for step in event.plan.steps:
                kept = [before[name] for name in before_of.get(step.id, ())]
                if any(node.begun or node.phase.over for node in kept):
                    for name in self.nodes_of[step.id]:
                        del self.nodes[name]
                    for node in kept:
                        node.step = step
                    self.nodes_of[step.id] = [node.id for node in kept]
                    self.nodes.update({node.id: node for node in kept})
            expanded = {step: seq for step, seq in self.expanded.items() if step in self.nodes_of}
            self.expanded = {
                step: seq
                for step, seq in expanded.items()
                if not any(self.nodes[n].expands for n in self.nodes_of[step])
            }

    def _begin_anew(self) -> None:
        """With all budgets; who asked may go on."""
        self.run_spent.clear()
        for node in self.nodes.values():
            if node.phase is Phase.ASKING:
                node.spent.clear()
                node.not_before = None
                node.phase = node.resume

    # --- the owner -----------------------------------------------------------------------------------------------
    def _answer(self, answer: str, record: e.Record) -> None:
        self.parked = False
        self.answer = "" if answer in ANSWERS else answer
        if any(node.failure and node.failure.kind is FailureClass.BUDGET for node in self._asking()):
            self.grants += 1
        if answer == "fail":
            self.refused = "The owner chose to let the run fail."
            return
        asking = self._asking()
        self._begin_anew()
        if answer in ("accept", "skip"):
            for node in asking:
                node.phase = Phase.SUCCEEDED if answer == "accept" else Phase.SKIPPED
                node.waived = answer == "skip"
                node.finished_at, node.over_seq = record.at, record.seq

    def _asking(self) -> list[Node]:
        return [node for node in self.nodes.values() if node.phase is Phase.ASKING]

    # --- questions and waits -------------------------------------------------------------------------------------
    def _ask(self, node: Node, question: Question) -> None:
        if question.replaces:
            self._close(node, question.replaces)
        node.questions[question.id] = question
        self.asked[question.id] = node.id
        self.ever_asked.add(question.id)
        if node.phase is not Phase.WAITING:
            node.resume, node.phase = node.phase, Phase.WAITING

    def _close(self, node: Node, question: str) -> None:
        node.questions.pop(question, None)
        self.asked.pop(question, None)

    def _answer_question(self, event: e.QuestionAnswered) -> None:
        self.answered[event.question] = (event.answer, event.by)
        node = self.nodes.get(self.asked.get(event.question, ""))
        if node is None:
            return
        question = node.questions[event.question]
        self._close(node, event.question)
        node.answers[event.question] = event.answer
        self.parked, self.park_until = False, None  # whatever else is asked, this step can go on
        if node.phase is not Phase.WAITING:
            return
        if node.resume is Phase.PENDING:  # whether the step may begin
            node.approved = is_yes(event.answer)
            node.phase = Phase.PENDING if node.approved else Phase.FAILED
            if not node.approved:
                said = f"{event.by or 'Nobody in time'}: {event.answer}"
                node.failure = Failure(kind=FailureClass.DENIED, message=f"{node.id} was not allowed. {said}")
            return
        node.talk.answered(question, event.answer)
        if not node.questions:
            node.phase = node.resume

    def _end_sub_goal(self, event: e.SubGoalEnded) -> None:
        self.ended_runs[event.run] = event
        for node in self.nodes.values():
            if node.phase is Phase.WAITING and node.waits_for == event.run:
                self._wake(node, event)

    def _wake(self, node: Node, ended: e.SubGoalEnded) -> None:
        node.talk.told(f"{ended.run} {ended.outcome}. {ended.summary}".strip(), ok=ended.outcome == "succeeded")
        node.phase, node.waits_for, node.not_before = node.resume, None, None

    # --- steps ---------------------------------------------------------------------------------------------------
    def _apply_to_node(self, node: Node, event: NodeEvent, record: e.Record) -> None:
        match event:
            case e.StepExpanded():
                del self.nodes[node.id]
                self._add_nodes(node.step, event.values)
                self.expanded[node.step.id] = record.seq
            case e.StepStarted():
                node.phase, node.attempt, node.key = Phase.RUNNING, event.attempt, event.key
                node.begun, node.begun_seq = True, record.seq
                self.attempts[node.id] = event.attempt
                node.not_before, node.blocked_since = None, None
                node.talk = Talk(model=node.talk.model)
                node.attempt_started_at = record.at
                node.started_at = node.started_at or record.at
            case e.EffectDone():
                node.phase, node.result = Phase.EFFECTED, event.result
                self._ended(node)
            case e.StepSucceeded():
                node.phase, node.result, node.failure = Phase.SUCCEEDED, event.result, None
                node.finished_at, node.over_seq = record.at, record.seq
                if node.purpose not in (None, Purpose.WORK):
                    node.waived = True
                elif node.id not in self.proven:  # verified progress
                    self.proven.add(node.id)
                    self.run_spent.clear()
                    if node.step.verify or not node.works:
                        self.turns_without_progress = 0
                self._ended(node)
            case e.StepFailed():
                node.phase, node.resume, node.failure = Phase.FAILED, Phase.PENDING, event.failure
                node.blocked_since = node.begun_seq if event.failure.kind is FailureClass.DISK_FULL else None
                self._ended(node)
            case e.StepBlocked():
                node.resume, node.phase, node.failure = node.phase, Phase.FAILED, event.failure
                node.blocked_since = event.since_seq
                if event.failure.kind is FailureClass.MODEL:
                    node.talk.model_failures += 1
                    self.model_failures[event.model] += 1
                    if self.model_failures[event.model] >= MODEL_TRIES_EACH:
                        self.broken_models[event.model] = record.at
            case e.StepUnverified():
                node.phase, node.failure = Phase.UNVERIFIED, event.failure
                self._ended(node)
            case e.StepSkipped():
                node.phase, node.finished_at, node.over_seq = Phase.SKIPPED, record.at, record.seq
                node.waived = node.waived or node.helps is not None
            case e.Thinking():
                self._think(node, event)
            case e.CallDone():
                node.talk.returned(event.turn, event.index, event.result)
                thought = node.talk.turns[event.turn].thought if event.turn < len(node.talk.turns) else None
                if thought is not None and isinstance(thought.decision, CallTools):
                    self.unforgotten.append(f"{node.key}.{call_id(event.turn, event.index)}")
                if node.phase is Phase.WAITING and not node.questions:
                    node.phase, node.waits_for, node.not_before = node.resume, None, None
            case e.Waiting():
                node.resume, node.phase = node.phase, Phase.WAITING
                node.not_before, node.waits_for = event.until, event.run
                if event.run in self.ended_runs:
                    self._wake(node, self.ended_runs[event.run])
            case e.Asked():
                self._ask(node, event.question)
            case e.Reported():
                node.reports.append((record.seq, event))
                if event.what == USAGE_REPORT and isinstance(event.data, dict):
                    self._take(node, Usage.model_validate(event.data["new"]))
            case e.SnapshotTaken():
                taken = StepSnapshot(event.snapshot, node.id, event.attempt, event.before, event.verified, event.at_seq)
                self.snapshots = sorted([*self.snapshots, taken], key=lambda one: one.seq)
            case e.RungEntered():
                self._climb(node, event)
            case e.RungDone():
                self._climbed(node, event, record.seq)

    def _ended(self, node: Node) -> None:
        if node.key and node.step.effect.kind == "run" and node.key not in self.unforgotten:
            self.unforgotten.append(node.key)

    def _climb(self, node: Node, event: e.RungEntered) -> None:
        rung = Rung(event.rung)
        node.rungs.append(event.rung)
        if node.phase is Phase.UNVERIFIED:
            node.resume = Phase.PENDING  # a lost effect is not asked for again: a next try is a new one
        if not event.joined:
            (self.run_spent if rung.of_run else node.spent)[rung] += 1
        kind = node.failure.kind if node.failure else None
        if kind is FailureClass.STUCK:
            self.turns_without_progress = 0
        if rung is Rung.OTHER:
            node.talk.model += 1
        if kind is FailureClass.CONTEXT and rung is Rung.RETRY:
            node.talk.shrinks += 1
        if event.joined or rung is Rung.RETRY:
            node.phase, node.not_before = node.resume, event.not_before
        elif rung is Rung.ASK:
            node.phase = Phase.ASKING
        elif node.works and rung in (Rung.SELF_CORRECT, Rung.OTHER):
            told = "\n\n".join(part for part in (event.reason, event.evidence) if part)
            node.trouble = told
            if self.mind.thinks:  # it goes on where it was
                node.talk.feed_back(told)
                node.phase = Phase.RUNNING
            else:
                node.phase = Phase.PENDING
        elif rung is Rung.REPLAN or (rung is Rung.SELF_CORRECT and node.step.on_error is None):
            node.phase, node.rung = Phase.MENDING, rung
            node.helper = self._add_helper(node, Purpose.REPLAN if rung is Rung.REPLAN else Purpose.MEND)
        else:
            node.phase, node.rung, node.rung_key = Phase.MENDING, rung, event.key
            node.begun = node.begun or rung is Rung.SELF_CORRECT

    def _add_helper(self, node: Node, purpose: Purpose) -> str:
        self.helpers += 1
        step = PlanStep(
            id=f"{purpose}-{self.helpers}",
            name=f"{purpose} {node.id}",
            effect=Work(instructions="", purpose=purpose, about=node.id),
        )
        self._add_nodes(step, [None])
        return step.id

    def _think(self, node: Node, event: e.Thinking) -> None:
        node.talk.thought(event.thought)
        self._take(node, event.thought.usage)
        self.turns_without_progress += 1
        self.model_failures.pop(event.thought.model, None)
        self.broken_models.pop(event.thought.model, None)

    def _take(self, node: Node, usage: Usage) -> None:
        self.usage, node.usage = self.usage.plus(usage), node.usage.plus(usage)

    def _climbed(self, node: Node, event: e.RungDone, seq: int) -> None:
        if event.ok and Rung(event.rung).of_office:
            self.mended_seq = seq
        node.phase = node.resume if event.ok else Phase.FAILED
        node.rung = node.helper = None


NodeEvent = (
    e.StepExpanded
    | e.StepStarted
    | e.EffectDone
    | e.StepSucceeded
    | e.StepFailed
    | e.StepBlocked
    | e.StepUnverified
    | e.StepSkipped
    | e.SnapshotTaken
    | e.RungEntered
    | e.RungDone
    | e.Thinking
    | e.CallDone
    | e.Waiting
    | e.Asked
    | e.Reported
)
_NODE_EVENTS = (
    e.StepExpanded,
    e.StepStarted,
    e.EffectDone,
    e.StepSucceeded,
    e.StepFailed,
    e.StepBlocked,
    e.StepUnverified,
    e.StepSkipped,
    e.SnapshotTaken,
    e.RungEntered,
    e.RungDone,
    e.Thinking,
    e.CallDone,
    e.Waiting,
    e.Asked,
    e.Reported,
)


@dataclass(frozen=True)
class _Outputs(Mapping[str, str]):
    state: RunState

    def __getitem__(self, step: str) -> str:
        if step not in self.state.nodes_of or not self.state.done(step):
            raise KeyError(step)
        return "\n".join(self.state.nodes[node].result.output for node in self.state.nodes_of[step])

    def __iter__(self) -> Iterator[str]:
        return (step for step in self.state.nodes_of if self.state.done(step))

    def __len__(self) -> int:
        return sum(1 for _ in self)


def stays(node: Node) -> bool:
    """Whether a change of the plan leaves the node as it is: it is done, or under way."""
    return node.phase.over or node.begun or node.phase in (Phase.WAITING, Phase.MENDING)


def fold(run_id: str, records: Iterable[e.Record]) -> RunState:
    """The state after `records`, the whole journal of the run in order."""
    state = RunState(run_id)
    for record in records:
        state.apply(record)
    return state
