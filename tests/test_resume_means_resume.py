"""The six properties of "Resume Means Resume" (arXiv 2608.03836), for every brain.

What a run is after a crash is compared with a *reference*: the same run, undisturbed. The reference writes down every fault point
that it reaches; at each of them (for some brains: at a spread of them) a real worker process is killed with SIGKILL, which is
proven to have happened there, and another worker finishes the run. Offices are `FakeHands`, whose effects can be counted; the
journal, the leases and the questions are those of the product, on a real PostgreSQL.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence, Set
from contextlib import AsyncExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import pytest

from fixtures.resuming import (
    EFFECTS,
    OUTSIDE,
    AcpCase,
    Came,
    Case,
    Crashing,
    ModelCase,
    PlaybookCase,
    ProcessCase,
    ScriptedCase,
)
from fixtures.stage import words_of
from fixtures.workers import WorkerPool, at_rest, until
from tenure import wire
from tenure.database import ControlDatabase
from tenure.errors import Conflict
from tenure.testing.fake_hands import FakeHands
from tenure.work import events as e
from tenure.work.decide import decide
from tenure.work.state import fold

CASES: dict[str, Case] = {
    case.name: case
    for case in (
        PlaybookCase(points=10),
        ScriptedCase(),
        ModelCase(points=10),
        ProcessCase(points=10),
        AcpCase(points=14),
    )
}
DEATHS_MAX = 4
"""Of workers of one run."""
ALWAYS = ("effect.snapshot", "journal.append.before/parked", "journal.append.before/snapshot")
"""Points at which every brain's worker is killed."""
LANES = 3
"""Runs that are killed at the same time, each on a control database of its own."""
RACERS = 8
FORKED_AT = "one"
BROKEN_SHOWN_MAX = 5
POINTS_MIN = {"playbook": 40, "scripted": 120, "pydantic_ai": 100, "process": 60, "acp": 150}
"""The references reach more; fewer mean that points were lost, and with them these tests' meaning."""

Rig = Callable[[], Awaitable[Crashing]]


@dataclass
class Sweep:
    reference: Came
    crashes: list[Came]


@pytest.fixture(params=CASES.values(), ids=CASES.keys())
def case(request: pytest.FixtureRequest) -> Case:
    return request.param


@pytest.fixture
async def new_rig(
    case: Case, new_control_dsn: Callable[[], str], worker_pool: WorkerPool, fake_hands: FakeHands, tmp_path: Path
) -> AsyncIterator[Rig]:
    """Makes rigs, each on a control database of its own and all on the same offices."""
    async with AsyncExitStack() as stack:
        stack.enter_context(case.stage())

        async def make() -> Crashing:
            dsn = new_control_dsn()
            database = await stack.enter_async_context(ControlDatabase(dsn))
            return Crashing(case, dsn, database, worker_pool, fake_hands, tmp_path / "offices", tmp_path)

        yield make


@pytest.fixture(scope="module")
def swept() -> dict[str, Sweep]:
    """What was found out for a brain is shared by the tests of this module."""
    return {}


@pytest.fixture
async def sweep(case: Case, new_rig: Rig, swept: dict[str, Sweep]) -> Sweep:
    """The reference, and what came of the same run when its worker was killed at each point of it."""
    if case.name in swept:
        return swept[case.name]
    rigs = [await new_rig() for _ in range(LANES)]
    reference, points = await rigs[0].reference("reference", "everything")
    assert len(points) >= POINTS_MIN[case.name], points
    chosen = {*spread(points, case.points), *(point for point in points if point.startswith(ALWAYS))}
    left = iter(list(enumerate(chained(points, chosen))))
    crashes: list[Came] = []
    broken: list[str] = []

    async def lane(rig: Crashing) -> None:
        for number, chain in left:
            if len(broken) < BROKEN_SHOWN_MAX:
                try:
                    crashes.append(await rig.killed(f"agent{number}", "everything", *chain))
                except AssertionError as error:
                    broken.append(f"{chain}: {error}")

    await asyncio.gather(*map(lane, rigs))
    assert not broken, "\n".join(broken)
    swept[case.name] = Sweep(reference, crashes)
    return swept[case.name]


def spread(points: Sequence[str], count: int | None) -> list[str]:
    """All, or so many of them from the first to the last."""
    if count is None or len(points) <= count:
        return list(points)
    return [points[round(n * (len(points) - 1) / (count - 1))] for n in range(count)]


def chained(points: Sequence[str], chosen: Set[str]) -> list[list[str]]:
    """Each of `chosen`, in chains of points at which workers of one run die one after the other: that are far from each other, so
    that no death changes which points come after it; and but for the first of a chain, such as are reached for the first time,
    since every worker counts anew."""
    apart = -(-len(points) // DEATHS_MAX)
    place = {point: at for at, point in enumerate(points)}
    chains: list[list[str]] = []
    for point in sorted(chosen, key=place.__getitem__):
        fits = [c for c in chains if place[c[-1]] + apart <= place[point]] if point.endswith(":1") else []
        if fits:
            fits[0].append(point)
        else:
            chains.append([point])
    return chains


# --- 1 -------------------------------------------------------------------------------------------------------------------
@pytest.mark.timeout(600)
def test_prefix_continuation(case: Case, sweep: Sweep) -> None:
    """A resumed run goes on behind what its journal had when the worker died: that stays as it is, entry for entry; no attempt is
    begun twice and no thought that the journal has is asked for again. And each thought is asked for with the whole
    conversation before it, as in the undisturbed run: nothing of it is replayed, nothing left out."""
    assert bool(sweep.reference.thoughts) == case.thinks, "the log of thoughts is not written"
    for came in sweep.crashes:
        at = came.killed_at
        asked = times(came.thoughts)
        for death in came.deaths:
            assert came.records[: len(death.records)] == death.records, f"{at}: the journal was rewritten"
            kept = {f"{r.event.node} {r.event.turn}" for r in death.records if isinstance(r.event, e.Thinking)}
            by_then = times(death.thoughts)
            assert {name: asked[name] for name in kept} == {name: by_then[name] for name in kept}, f"{at}: asked again"
        assert [record.seq for record in came.records] == list(range(1, len(came.records) + 1)), at
        begun = Counter((event.node, event.attempt) for event in came.of(e.StepStarted))
        assert set(begun.values()) == {1}, f"{at}: an attempt was begun twice"
        assert set(came.thoughts) == set(sweep.reference.thoughts), f"{at}: asked with another conversation"
        assert asked.total() <= len(sweep.reference.thoughts) + len(at), (
            f"{at}: more was asked again than what was lost"
        )


def times(thoughts: Sequence[str]) -> Counter[str]:
    """How often each was asked for."""
    return Counter(line.rpartition(" ")[0] for line in thoughts)


# --- 2 -------------------------------------------------------------------------------------------------------------------
@pytest.mark.timeout(600)
async def test_effect_exactly_once(case: Case, sweep: Sweep, new_rig: Rig) -> None:
    """Whatever the run does happens once, counted where it happens: words that commands append to a file of the office and to one
    outside that no restore touches, rows of its database, messages. What was begun and then lost with the sandbox is never
    done again, but told as unverified."""
    for came in [sweep.reference, *sweep.crashes]:
        at = came.killed_at
        assert came.run.state == wire.RunState.SUCCEEDED, f"{at}: {came.run.question or came.run.error}"
        assert (came.effects, came.outside) == (EFFECTS, OUTSIDE), at
        assert (came.rows, came.messages) == ([[1]], ["done"]), at
        results = Counter((event.node, event.attempt, event.turn, event.index) for event in came.of(e.CallDone))
        assert set(results.values()) <= {1}, f"{at}: a call has two results"
        assert not came.of(e.StepUnverified), at
    await the_lost_effect(case, await new_rig())


async def the_lost_effect(case: Case, rig: Crashing) -> None:
    rig.hands.add_agent("loser")
    run_id = await case.begin(rig.runs, "loser", "losing")
    fired = rig.logs / "loser.fired"
    victim = rig.start("loser", "losing", TENURE_FAULT=f"{case.lost_call}:kill", TENURE_FAULT_LOG=str(fired))
    await victim.wait_for("", "Z")
    assert fired.read_text() == f"{case.lost_call}:kill\n"
    effects = rig.root / "loser" / "home" / "effects"
    await until(lambda: words_of(effects))
    await rig.hands.restart("loser")
    heir = rig.start("loser", "losing")
    run = await at_rest(rig.runs, run_id)
    await heir.end()
    came = await rig.came(run)
    assert case.told_lost(came) == 1, "nobody was told that it is not known"
    assert came.effects["one"] == 1, "it was repeated without anybody knowing whether it happened"


# --- 3 -------------------------------------------------------------------------------------------------------------------
@pytest.mark.timeout(600)
async def test_fork_determinism(case: Case, new_rig: Rig) -> None:
    """Forks of one step go on alike, and as their origin did from there, when the same is decided: entry for entry of the
    journal, effect for effect, also when their workers are killed. What was thought before that step is not asked for again, and
    the origin stays as it was."""
    rig = await new_rig()
    origin, points = await rig.reference("origin", "everything")
    (success,) = [r for r in origin.records if isinstance(r.event, e.StepSucceeded) and r.event.node == FORKED_AT]
    snapshots = dict(origin.snapshots)

    async def fork(new: str, *killed_at: str) -> Came:
        point = await rig.runs.fork_point(origin.run.id, FORKED_AT, there=rig.hands.snapshots("origin"))
        rig.hands.fork("origin", new, point.snapshot.id)
        run = await rig.runs.fork(point, new)
        return await rig.finish(new, "everything", run.id, *killed_at)

    later = [p for p in points if p.endswith(":1") and any(f"/{n}" in p for n in ("row", "mended", "gate", "tell"))]
    forks = [await fork("fork"), await fork("again")]
    forks += [await fork(f"killed{number}", point) for number, point in enumerate(spread(later, 3))]
    for forked in forks:
        at = forked.killed_at
        (cut,) = [record.seq for record in forked.records if isinstance(record.event, e.Forked)]
        assert case.told(forked, after=cut) == case.told(origin, after=success.seq), at
        assert forked.deaths or case.reported(forked, after=cut) == case.reported(origin, after=success.seq)
        assert forked.effects == origin.effects, at
        assert forked.outside == origin.outside - Counter(["one"]), f"{at}: what was done before was done again"
        assert not [line for line in forked.thoughts if line.startswith(("plan ", "one "))], at
    after = await rig.came(await rig.runs.get(origin.run.id))
    assert (after.records, after.effects, after.snapshots) == (origin.records, origin.effects, snapshots)


# --- 4 -------------------------------------------------------------------------------------------------------------------
@pytest.mark.timeout(600)
async def test_checkpoint_validity(case: Case, sweep: Sweep, new_rig: Rig) -> None:
    """Whatever a run may go on from is whole. Its journal, cut at any entry, is read by the rules that wrote it and folds to a
    state. A snapshot that the journal names is there, holds what the journal says was done by then and nothing that came later,
    and there is no other one. Going back to it, however often the worker dies at that, brings back just that moment, once."""
    (reference,) = sweep.reference.snapshots.values()
    case.check_begun(sweep.reference)
    for came in sweep.crashes:
        at = came.killed_at
        case.check_begun(came)
        named = [event.snapshot for event in came.of(e.SnapshotTaken)]
        assert sorted(named) == sorted(came.snapshots), f"{at}: a snapshot was lost, or taken twice"
        assert list(came.snapshots.values()) == [reference], f"{at}: half of what was done, or more"
        assert all(event.verified for event in came.of(e.SnapshotTaken)), at
        for record in came.records:
            assert e.decode(record.event.kind, record.event.model_dump(mode="json", exclude={"kind"})) == record.event
    state = fold(sweep.reference.run.id, ())
    for record in sweep.reference.records:
        state.apply(record)
        assert repr(state) == repr(fold(state.run_id, sweep.reference.records[: record.seq]))
    await going_back(await new_rig())


async def going_back(rig: Crashing) -> None:
    reference, points = await rig.reference("back", "going_back")
    chosen = [point for point in points if any(word in point for word in ("restore", "rung_"))]
    assert any(point.startswith("effect.restore.after") for point in chosen), points
    crashes = [await rig.killed(f"back{n}", "going_back", point) for n, point in enumerate(spread(chosen, 5))]
    for came in [reference, *crashes]:
        at = came.killed_at
        assert came.run.state == wire.RunState.SUCCEEDED, f"{at}: {came.run.question}"
        rig.case.check_begun(came)
        (restored,) = came.of(e.OfficeRestored)
        assert came.snapshots[restored.snapshot] == Counter(["one"]), at
        assert came.snapshots[restored.before] == Counter(["one", "spoil-1"]), f"{at}: the evidence is gone"
        assert restored.undone == ("spoil", "breaks"), at
        assert came.effects == Counter(["one", "spoil-2"]), f"{at}: something of before is left, or was not redone"
        assert came.outside == Counter(["1", "2"]), at


# --- 5 -------------------------------------------------------------------------------------------------------------------
@pytest.mark.timeout(600)
async def test_consume_once(case: Case, sweep: Sweep, new_rig: Rig) -> None:
    """An answer lets a parked run go on once. Of many who answer at the same time one is taken and all others are told so; of
    many workers one takes the run; what was asked for happens once. A crash at any point between the answer and what it allows
    neither loses the answer nor uses it twice, and nobody is asked again."""
    for came in sweep.crashes:
        case.check_consumed(came)
    rig = await new_rig()
    rig.hands.add_agent("parked")
    run_id = await case.begin(rig.runs, "parked", "everything")
    first = rig.start("parked", "everything")
    run = await at_rest(rig.runs, run_id)
    await first.end()
    workers = [rig.start("parked", "everything") for _ in range(3)]
    for _ in range(case.questions):
        assert run.state == wire.RunState.PARKED
        parked = run
        said = [case.answer(rig.runs, parked, by=f"person{n}") for n in range(RACERS)]
        outcomes = await asyncio.gather(*said, return_exceptions=True)
        assert sum(outcome is None for outcome in outcomes) == 1, outcomes
        assert all(outcome is None or isinstance(outcome, Conflict) for outcome in outcomes), outcomes
        run = await at_rest(rig.runs, run_id)
        with pytest.raises(Conflict):
            await case.answer(rig.runs, parked)
    for worker in workers:
        await worker.end()
    came = await rig.came(run)
    assert came.run.state == wire.RunState.SUCCEEDED
    assert (came.effects, came.outside, came.rows) == (EFFECTS, OUTSIDE, [[1]])
    case.check_consumed(came)
    assert came.kinds["run_claimed"] == 1 + case.questions, "two workers took it"


# --- 6 -------------------------------------------------------------------------------------------------------------------
@pytest.mark.timeout(600)
async def test_recovery_determinism(case: Case, sweep: Sweep, new_rig: Rig) -> None:
    """The same journal leads to the same decisions, whoever reads it and however often. So a run that was recovered tells, but
    for who carried it and when, what the undisturbed one tells; also when the second worker dies, and the third."""
    reference = sweep.reference
    for came in sweep.crashes:
        assert case.told(came) == case.told(reference), f"{came.killed_at}: it went another way"
    now = datetime.now(UTC)
    for record in reference.records:
        one, other = (fold(reference.run.id, reference.records[: record.seq]) for _ in range(2))
        assert decide(one, now, 0.5) == decide(other, now, 0.5)
        assert decide(one, now, 0.5) == decide(one, now, 0.5), "asking changed something"
    rig = await new_rig()
    _, points = await rig.reference("recovered", "everything")
    # (Each death is further on than the one before, at a point that every worker that comes so far reaches as its first.)
    named = [point for point in points if point.endswith(":1") and point.startswith("journal.append")]
    for number, offset in enumerate((0, 1)):
        at = spread(named[1 + offset :], 5)
        came = await rig.killed(f"again{number}", "everything", *at[:-1])
        assert case.told(came) == case.told(reference), f"{at}: it went another way"
        assert (came.effects, came.outside) == (EFFECTS, OUTSIDE), at
