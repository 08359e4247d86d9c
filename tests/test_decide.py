"""`decide` and the ladder are pure: whatever happens, in whatever order, these hold. Hypothesis plays the office."""

from __future__ import annotations

import copy
from collections import Counter
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from hypothesis import given, settings
from hypothesis import strategies as st

from tenure.work import events as e
from tenure.work.decide import Action, Attempt, End, Expand, Halt, Mend, Restore, Verify, Wait, Write, decide
from tenure.work.failures import Failure, FailureClass
from tenure.work.keys import effect_key
from tenure.work.ladder import Mind, Rung, Spent, budget, next_rung, retry_delay_s
from tenure.work.plan import ForEach, Notify, OnLost, Plan, PlanStep, Retry, RunScript, SqlCheck, Work, node_id
from tenure.work.snapshots import is_clean, restore_points, undone_by, wants_after, wants_before
from tenure.work.state import Phase, RunState, fold

T0 = datetime(2026, 1, 1, tzinfo=UTC)
ROUNDS_MAX = 2000
"""More than the largest plan below can need with every budget spent: reaching it means that it goes round in circles."""
TROUBLE = ["failed", "timeout", "refuted", "refuted", "full", "door", "sandbox", "lost", "auth", "internal", "crash"]
OUTCOMES = st.sampled_from(["done"] * 8 + TROUBLE)
CLASSES = {
    "failed": FailureClass.COMMAND,
    "timeout": FailureClass.TIMEOUT,
    "refuted": FailureClass.VERIFICATION,
    "full": FailureClass.DISK_FULL,
    "door": FailureClass.DOOR,
    "sandbox": FailureClass.SANDBOX,
    "auth": FailureClass.AUTHENTICATION,
    "internal": FailureClass.INTERNAL,
}


@st.composite
def plans(draw: st.DrawFn) -> Plan:
    steps: list[PlanStep] = []
    for number in range(draw(st.integers(1, 5))):
        needs = draw(st.lists(st.sampled_from([step.id for step in steps]), unique=True, max_size=2)) if steps else []
        for_each = draw(
            st.sampled_from(
                [None, None, ForEach(values=("a", "b", "c")), ForEach(sql="select x"), ForEach(values=("z",))]
            )
        )
        steps.append(
            PlanStep(
                id=f"s{number}",
                needs=tuple(needs),
                effect=draw(st.sampled_from([RunScript(script="true")] * 4 + [Notify(subject="hello")])),
                risky=draw(st.booleans()),
                final=draw(st.sampled_from([False] * 5 + [True])),
                retry=Retry(attempts=draw(st.integers(0, 3)), delay_s=draw(st.sampled_from([0.0, 5.0]))),
                verify=(SqlCheck(statement="select true"),) if draw(st.booleans()) else (),
                for_each=for_each,
                on_error="mend" if draw(st.booleans()) else None,
                on_lost=draw(st.sampled_from(OnLost)),
                condition=draw(st.sampled_from([None, None, None, "false"])),
            )
        )
    return Plan(steps=tuple(steps), concurrency=draw(st.integers(1, 3)))


@dataclass
class World:
    """A driver and an office in one: carries out what `decide` says, with outcomes and orders drawn by hypothesis."""

    plan: Plan
    data: st.DataObject
    journal: list[e.Record] = field(default_factory=list[e.Record])
    now: datetime = T0
    under_way: dict[str, Action] = field(default_factory=dict[str, Action])
    begun: Counter[str] = field(default_factory=Counter[str])
    taken: int = 0
    restores: int = 0

    def __post_init__(self) -> None:
        self.state = RunState("run_x")
        self.write(e.RunCreated(agent="a", goal="g", brain="playbook"), e.Planned(plan=self.plan))
        self.write(e.RunClaimed(worker="w", attempt=1))

    def write(self, *events: e.AnyEvent) -> None:
        for event in events:
            record = e.Record(len(self.journal) + 1, self.now, event)
            self.journal.append(record)
            self.state.apply(record)

    def run(self) -> End | None:
        """Until the run ends; None when it was cancelled."""
        for _ in range(ROUNDS_MAX):
            before = copy.deepcopy(self.state)
            actions = decide(self.state, self.now, 0.5)
            assert self.state == before, "decide changed what it was given"
            self.check_invariants(actions)
            if isinstance(actions[0], End):
                if self.under_way:
                    raise AssertionError(f"{actions} while {self.under_way} is under way")
                return actions[0]
            if isinstance(actions[0], Write):
                self.write(*actions[0].events)
                continue
            self.act(actions)
        raise AssertionError("no end in sight")

    def check_invariants(self, actions: list[Action]) -> None:
        assert actions, "neither progress, nor a wait, nor an end"
        for action in actions:
            if isinstance(action, Attempt | Verify | Expand | Mend | Restore):
                node = self.state.nodes[action.node]
                assert not node.phase.over, f"{action} of a finished step"
                assert all(self.state.done(need) for need in node.step.needs), f"{action} before its needs"
            if isinstance(action, Write | End | Halt | Restore):
                assert len(actions) == 1, actions
        active = sum(node.phase.active for node in self.state.nodes.values())
        begins = sum(
            isinstance(a, Attempt | Expand) and self.state.nodes[a.node].phase is Phase.PENDING for a in actions
        )
        assert active + begins <= max(self.plan.concurrency, active), "too many at once"
        for node in self.state.nodes.values():
            for rung, count in node.spent.items():
                assert count <= budget(rung, node.step), f"{node.id} overspent {rung!r}"
        for rung, count in self.state.run_spent.items():
            assert count <= budget(rung, self.plan.steps[0]), f"the office overspent {rung!r}"

    def act(self, actions: list[Action]) -> None:
        for action in actions:
            if isinstance(action, Restore):
                self.under_way.clear()
            if isinstance(action, Attempt | Verify | Expand | Mend | Restore):
                self.under_way.setdefault(action.node, action)
        if not self.under_way:
            waits = [action for action in actions if isinstance(action, Wait)]
            assert waits[0].until > self.now, "a wait that is over"
            self.now = waits[0].until
            return
        self.now += timedelta(seconds=1)
        node_name = self.data.draw(st.sampled_from(sorted(self.under_way)))
        action = self.under_way.pop(node_name)
        outcome = self.data.draw(OUTCOMES)
        if outcome == "crash":  # the worker dies with all that it was doing; another one begins from the journal
            self.begin(node_name, action)
            self.under_way.clear()
            self.write(e.RunClaimed(worker="w", attempt=2))
            return
        self.finish(node_name, action, outcome)

    def begin(self, name: str, action: Action) -> None:
        """The intent, as a driver writes it before an effect."""
        node = self.state.nodes[name]
        if isinstance(action, Attempt) and node.phase is Phase.PENDING:
            attempt = node.attempt + 1
            self.begun[name] += 1
            if wants_before(node):
                self.snapshot(name, attempt, before=True)
            self.write(e.StepStarted(node=name, attempt=attempt, key=effect_key("run_x", name, attempt)))

    def snapshot(self, name: str, attempt: int, *, before: bool) -> None:
        self.taken += 1
        self.write(
            e.SnapshotTaken(
                node=name,
                attempt=attempt,
                snapshot=f"snap_{self.taken}",
                before=before,
                verified=is_clean(self.state, self.state.nodes[name]),
                at_seq=len(self.journal),
            )
        )

    def succeed(self, name: str) -> None:
        node = self.state.nodes[name]
        if wants_after(self.state, node):
            self.snapshot(name, node.attempt, before=False)
        self.write(e.StepSucceeded(node=name, attempt=node.attempt))

    def restore(self, name: str, outcome: str) -> None:
        """To the newest point that nobody pruned, and the office holds what the journal says of then, and nothing else."""
        points = restore_points(self.state)
        if outcome not in ("done", "lost") or not points:
            self.write(e.RungDone(node=name, rung=int(Rung.RESTORE), ok=False))
            return
        to = points[self.data.draw(st.integers(0, len(points) - 1))]
        undone = [self.state.nodes[node] for node in undone_by(self.state, to)]
        assert not any(node.step.final and node.begun for node in undone), "a skipped one did nothing outside"
        self.restores += 1
        self.write(
            e.RungDone(node=name, rung=int(Rung.RESTORE), ok=True),
            e.OfficeRestored(
                node=name,
                snapshot=to.id,
                before=f"before_{self.restores}",
                to_seq=to.seq,
                undone=tuple(undone_by(self.state, to)),
            ),
        )
        then = fold("run_x", self.journal[: to.seq])
        told = {node.id for node in self.state.nodes.values() if isinstance(node.step.effect, Notify) or node.waived}
        done = {node.id for node in then.nodes.values() if node.phase.over}
        if not to.before:
            done.add(to.node)
        assert {node.id for node in self.state.nodes.values() if node.phase.over} - told == done - told
        assert not any(node.begun and not node.phase.over for node in self.state.nodes.values())
        assert {
            name for name, nodes in self.state.nodes_of.items() if any(self.state.nodes[n].expands for n in nodes)
        } == {name for name, nodes in then.nodes_of.items() if any(then.nodes[n].expands for n in nodes)}

    def finish(self, name: str, action: Action, outcome: str) -> None:
        node, since = self.state.nodes[name], len(self.journal)
        failure = Failure(kind=CLASSES.get(outcome, FailureClass.COMMAND), message=outcome)
        self.begin(name, action)
        match action:
            case Restore():
                self.restore(name, outcome)
            case Mend():
                self.write(e.RungDone(node=name, rung=int(node.rung or 0), ok=outcome in ("done", "lost")))
            case Expand() if outcome in ("done", "lost"):
                self.write(e.StepExpanded(node=name, values=("p", "q")))
            case Attempt() if outcome == "done" and node.step.verify:
                self.write(e.EffectDone(node=name, attempt=node.attempt, result=e.Result()))
            case Attempt() if outcome == "lost":
                lost = Failure(kind=FailureClass.LOST, message="lost")
                self.write(e.StepUnverified(node=name, attempt=node.attempt, failure=lost))
            case _ if outcome in ("done", "lost"):
                self.succeed(name)
            case _ if outcome in ("door", "sandbox", "internal"):
                self.write(e.StepBlocked(node=name, attempt=node.attempt, failure=failure, since_seq=since))
            case _:
                self.write(e.StepFailed(node=name, attempt=node.attempt, failure=failure))


@settings(max_examples=300, deadline=None)
@given(plan=plans(), data=st.data())
def test_every_run_comes_to_an_end(plan: Plan, data: st.DataObject) -> None:
    """With the invariants of `World.check_invariants` on the way: no finished step runs again, no step runs before its needs,
    no budget is exceeded, never nothing to do."""
    world = World(plan, data)
    end = world.run()
    assert end is not None
    over = {node.id for node in world.state.nodes.values() if node.phase.over}
    if isinstance(end.event, e.RunSucceeded):
        assert over == set(world.state.nodes)
    else:
        asking = {node.id for node in world.state.nodes.values() if node.phase is Phase.ASKING}
        assert asking
        assert isinstance(end.event, e.Parked)
        assert set(end.event.nodes) == asking
    for name, times in world.begun.items():
        if name in world.state.nodes:
            # Once, its own retries and mends, again after each recovery that ends a failure (a full disk's are two).
            retries = world.state.nodes[name].step.retry.attempts + 2
            most = (1 + world.restores) * (1 + retries + 2)
            assert times <= most, f"{name} was begun {times} times"


@settings(max_examples=100, deadline=None)
@given(plan=plans(), data=st.data(), answer=st.sampled_from(["retry", "accept", "skip", "fail", "some text"]))
def test_an_answered_run_goes_on_to_an_end(plan: Plan, data: st.DataObject, answer: str) -> None:
    world = World(plan, data)
    end = world.run()
    assert end is not None
    world.write(end.event)
    assert decide(world.state, world.now, 0.5) == []
    if isinstance(end.event, e.Parked):
        world.write(e.Answered(answer=answer), e.RunClaimed(worker="w", attempt=1))
        second = world.run()
        assert second is not None
        assert isinstance(second.event, e.RunFailed) == (answer == "fail")


@settings(max_examples=100, deadline=None)
@given(plan=plans(), data=st.data())
def test_folding_the_journal_again_gives_the_same_state(plan: Plan, data: st.DataObject) -> None:
    """Through JSON, as the database keeps it: what a worker knows is what the next one will know."""
    world = World(plan, data)
    world.run()
    again = RunState("run_x")
    for record in world.journal:
        body = e.encode(record.event)
        again.apply(e.Record(record.seq, record.at, e.decode(record.event.kind, __import__("json").loads(body))))
    assert again == world.state


@settings(max_examples=60, deadline=None)
@given(
    order=st.permutations(["a", "b", "c"]), outcomes=st.lists(st.sampled_from(["ok", "fail"]), min_size=3, max_size=3)
)
def test_the_order_in_which_branches_end_does_not_matter(order: list[str], outcomes: list[str]) -> None:
    step = PlanStep(
        id="year",
        effect=RunScript(script="true"),
        for_each=ForEach(values=("a", "b", "c")),
        retry=Retry(attempts=0),
    )
    last = PlanStep(id="last", needs=("year",), effect=RunScript(script="true"))
    by_item = dict(zip(("a", "b", "c"), outcomes, strict=True))

    def end(items: list[str]) -> tuple[list[Action], dict[str, tuple[str, int]]]:
        state, seq = RunState("run_x"), 0

        def write(*events: e.AnyEvent) -> None:
            nonlocal seq
            for event in events:
                seq += 1
                state.apply(e.Record(seq, T0, event))

        write(e.RunCreated(agent="a", goal="g", brain="b"), e.Planned(plan=Plan(steps=(step, last))))
        for item in "abc":
            write(e.StepStarted(node=node_id("year", item), attempt=1, key=item))
        for item in items:
            name = node_id("year", item)
            failure = Failure(kind=FailureClass.COMMAND, message="no")
            ok = by_item[item] == "ok"
            write(e.StepSucceeded(node=name, attempt=1) if ok else e.StepFailed(node=name, attempt=1, failure=failure))
        while isinstance((actions := decide(state, T0, 0.0))[0], Write):
            write(*actions[0].events)
        return actions, {name: (node.phase, node.attempt) for name, node in state.nodes.items()}

    assert end(list(order)) == end(["a", "b", "c"])


def test_a_cancelled_run_only_halts() -> None:
    plan = Plan(steps=(PlanStep(id="a", effect=RunScript(script="true")),))
    state = RunState("run_x")
    for seq, event in enumerate(
        [e.Planned(plan=plan), e.StepStarted(node="a", attempt=1, key="k"), e.CancelRequested()], start=1
    ):
        state.apply(e.Record(seq, T0, event))
    assert decide(state, T0, 0.0) == [Halt((("a", "k"),))]


def test_workers_that_die_on_a_run_again_and_again_lead_to_a_person() -> None:
    plan = Plan(steps=(PlanStep(id="a", effect=RunScript(script="true")),))
    state = RunState("run_x")
    state.apply(e.Record(1, T0, e.Planned(plan=plan)))
    for seq in range(2, 100):
        state.apply(e.Record(seq, T0, e.RunClaimed(worker="w", attempt=seq)))
        (action,) = decide(state, T0, 0.0)
        if isinstance(action, End):
            assert isinstance(action.event, e.Parked)
            return
    raise AssertionError("never asked")


# --- the ladder ----------------------------------------------------------------------------------------------------------
spents = st.builds(
    Spent,
    step=st.dictionaries(st.sampled_from([Rung.RETRY, Rung.SELF_CORRECT, Rung.OTHER]), st.integers(0, 4)),
    run=st.dictionaries(st.sampled_from([rung for rung in Rung if rung.of_run]), st.integers(0, 3)),
)
minds = st.builds(Mind, models=st.integers(0, 3), thinks=st.booleans())
steps = st.builds(
    PlanStep,
    id=st.just("s"),
    effect=st.sampled_from(
        [RunScript(script="true"), Work(instructions="do it"), Work(instructions="mend it", purpose="mend", about="x")]
    ),
    retry=st.builds(Retry, attempts=st.integers(0, 4)),
    on_error=st.sampled_from([None, "mend"]),
    risky=st.booleans(),
)


@given(kind=st.sampled_from(FailureClass), step=steps, spent=spents, can_restore=st.booleans(), mind=minds)
def test_the_ladder_only_leads_up_and_within_budgets(
    kind: FailureClass, step: PlanStep, spent: Spent, can_restore: bool, mind: Mind
) -> None:
    rung = next_rung(kind, step, spent, can_restore=can_restore, mind=mind)
    assert rung is Rung.ASK or spent.of(rung) < budget(rung, step, mind)
    assert rung >= spent.level(rung)
    assert can_restore or rung is not Rung.RESTORE
    if kind in (FailureClass.AUTHENTICATION, FailureClass.USAGE) and not mind.thinks and mind.models < 2:
        assert rung is Rung.ASK
    if rung is Rung.REPLAN:
        assert mind.thinks
    if rung is Rung.OTHER:
        assert mind.models > 1
    if kind is FailureClass.SANDBOX:
        assert rung in (Rung.RESTART, Rung.RESTORE, Rung.REBUILD, Rung.ASK)
    if kind is FailureClass.DISK_FULL:
        assert rung in (Rung.RESTART, Rung.RESTORE, Rung.ASK)
    if kind is FailureClass.DATABASE or (kind is FailureClass.COMMAND and not step.risky):
        assert not rung.of_office


@given(
    retry=st.builds(Retry, delay_s=st.just(0.0) | st.floats(1e-6, 3600), backoff=st.floats(1, 10)),
    earlier=st.integers(0, 1000),
    randomness=st.floats(0, 1, exclude_max=True),
)
def test_retry_delays_are_bounded_and_jittered(retry: Retry, earlier: int, randomness: float) -> None:
    delay = retry_delay_s(retry, earlier, randomness)
    assert 0 <= delay <= 3600
    assert retry_delay_s(retry, earlier, 0) <= delay <= 2 * retry_delay_s(retry, earlier, 0)
    assert delay <= retry_delay_s(retry, earlier + 1, randomness)
