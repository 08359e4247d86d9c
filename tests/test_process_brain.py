"""Any program of the office as a brain: durable by its key and its checkpoints, ended when it breaks its promise to live."""

from __future__ import annotations

import asyncio
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fixtures.errands import AGENT, TELL, Desk, settings_of, with_lease_lost
from tenure.brains.base import REPORTS_MAX
from tenure.brains.errands import DOUBLED_MAX, REPORTS_PER_SPACING, Reporting, spacing_s
from tenure.brains.process import ASK_EXIT_CODE, ProcessProgram
from tenure.brains.process.pulse import BEATS_MISSED_MAX, HEARTBEAT_S_DEFAULT, Pulse
from tenure.errors import DoorClosed, LeaseLost, NotFound, ServerUnreachable, TooLarge, UsageError
from tenure.testing.fake_signals import FileSignals
from tenure.wire import CHECKPOINT_BYTES_MAX, ProgramQuestion
from tenure.work.effects import Asks, Blocked, Done, Failed, Lost
from tenure.work.failures import FailureClass
from tenure.work.hands import Signals
from tenure.work.plan import Work
from tenure.work.signals import KEYS_MAX, SignalStore
from tenure.work.thoughts import Purpose

pytest_plugins = ("fixtures.desks",)

LOOK_S = 0.02
COUNTING = """
echo start >> starts
begin=$(kept || echo 0)
for n in 1 2 3; do
    [ "$n" -gt "$begin" ] || continue
    echo "$n" >> effects
    keep "$n"
done
echo counted
"""


def shell(script: str, **more: Any) -> Any:
    return settings_of("bash", "-c", TELL + script, **more)


@pytest.fixture
def program() -> ProcessProgram:
    return ProcessProgram(look_s=LOOK_S)


# --- what it is given, and how it ends ---------------------------------------------------------------------------------------
async def test_it_is_told_everything_and_done_with_its_exit(desk: Desk, program: ProcessProgram) -> None:
    script = 'env -0 | tr "\\n\\0" " \\n" | grep ^TENURE_; echo "$GIVEN $MORE"'
    settings = shell(script, env={"GIVEN": "mine"})
    outcome = await desk.carry(program, settings, trouble="it was wet", env={"MORE": "theirs"}, attempt=3)
    assert isinstance(outcome, Done)
    found = dict(line.split("=", 1) for line in outcome.result.output.splitlines() if line.startswith("TENURE_"))
    assert found["TENURE_WORK_URL"] == found["TENURE_URL"] + "/work/run_1.work.3"
    assert found["TENURE_CHECKPOINT_URL"] == found["TENURE_WORK_URL"] + "/checkpoint"
    assert {
        "TENURE_GOAL": "the goal",
        "TENURE_INSTRUCTIONS": "do this",
        "TENURE_RUN": "run_1",
        "TENURE_STEP": "work",
        "TENURE_ATTEMPT": "3",
        "TENURE_TROUBLE": "it was wet",
        "TENURE_PURPOSE": "work",
        "TENURE_ANSWERS": "{}",
    }.items() <= found.items()
    assert outcome.result.output.splitlines()[-1] == "mine theirs"


@pytest.mark.parametrize(
    ("script", "kind"),
    [("echo no; exit 3", FailureClass.COMMAND), ("echo No space left on device; exit 1", FailureClass.DISK_FULL)],
)
async def test_its_exit_code_is_its_failure(
    desk: Desk, program: ProcessProgram, script: str, kind: FailureClass
) -> None:
    outcome = await desk.carry(program, shell(script))
    assert isinstance(outcome, Failed)
    assert outcome.failure.kind is kind
    assert outcome.failure.exit_code == outcome.result.exit_code != 0
    assert outcome.failure.evidence == outcome.result.output != ""


async def test_a_goal_is_one_step_without_a_clock(program: ProcessProgram) -> None:
    plan = program.plan("make it so", {"a": Path("b")})
    (step,) = plan.steps
    assert step.effect == Work(instructions="make it so")
    assert plan.inputs == {"a": "b"}
    with pytest.raises(UsageError):
        program.plan(" ", {})


async def test_what_it_cannot_do_is_refused(desk: Desk, program: ProcessProgram) -> None:
    for settings, changes in (
        (settings_of(), {}),
        (shell("true"), {"purpose": Purpose.PLAN}),
        (shell("true", env={"TENURE_HEARTBEAT_S": "often"}), {}),
    ):
        outcome = await desk.carry(program, settings, **changes)
        assert isinstance(outcome, Failed)
        assert outcome.failure.kind is FailureClass.USAGE
    assert not any(call.startswith("start_command") for call in desk.hands.calls)


# --- durable -----------------------------------------------------------------------------------------------------------------
def test_a_worker_killed_at_any_point_leaves_one_program_and_the_next_one_finds_it(tmp_path: Path) -> None:
    settings, program = shell(COUNTING), ProcessProgram(look_s=LOOK_S)
    rehearsal = Desk(tmp_path / "rehearsal")
    try:
        points = rehearsal.points(program, settings)
    finally:
        rehearsal.office.close()
    assert {"process.start.before/work:1", "process.start.after/work:1", "report.after/checkpoint:1"} <= set(points)
    for number, point in enumerate(points):
        if point.startswith("report.") and not point.endswith(":1"):
            continue  # how many there are is a matter of time
        desk = Desk(tmp_path / str(number))
        try:
            desk.carry_and_die(program, settings, point)
            outcome = asyncio.run(desk.carry(program, settings))
            assert isinstance(outcome, Done), (point, outcome)
            assert outcome.result.output == "counted", point
            assert desk.lines("starts") == ["start"], point
            assert desk.lines("effects") == ["1", "2", "3"], point
            assert desk.told("checkpoint")[-1] == 3, point
        finally:
            desk.office.close()


async def test_the_next_attempt_begins_with_the_latest_checkpoint(desk: Desk, program: ProcessProgram) -> None:
    dies = COUNTING.replace("done\n", '[ "$n" = 2 ] && [ "$TENURE_ATTEMPT" = 1 ] && exit 9\ndone\n')
    outcome = await desk.carry(program, shell(dies))
    assert isinstance(outcome, Failed)
    assert desk.told("checkpoint")[-1] == 2
    outcome = await desk.carry(program, shell(dies), attempt=2)
    assert isinstance(outcome, Done)
    assert desk.lines("effects") == ["1", "2", "3"]
    assert desk.lines("starts") == ["start", "start"]
    assert desk.told("checkpoint")[-1] == 3


async def test_progress_reaches_the_journal(desk: Desk, program: ProcessProgram) -> None:
    outcome = await desk.carry(program, shell("""tell progress '{"text": "half of it"}'"""))
    assert isinstance(outcome, Done)
    assert desk.told("progress") == ["half of it"]


@pytest.mark.parametrize("script", ["sleep 600", "keep 1; sleep 600"])
async def test_a_program_lost_with_its_sandbox_begins_again_only_if_it_keeps_checkpoints(
    desk: Desk, program: ProcessProgram, script: str
) -> None:
    carrying = asyncio.create_task(desk.carry(program, shell(f"touch on; {script}")))
    await desk.until(lambda: bool(desk.told("checkpoint")) or ("keep" not in script and (desk.home / "on").exists()))
    await desk.office.restart(AGENT)
    outcome = await carrying
    assert isinstance(outcome, Failed if "keep" in script else Lost)
    assert outcome.failure.kind is FailureClass.LOST


async def test_an_office_that_does_not_answer_is_asked_again_by_the_same_key(
    desk: Desk, program: ProcessProgram
) -> None:
    fault = desk.hands.add("command_status", lambda: DoorClosed("closed"), times=1)
    outcome = await desk.carry(program, shell(COUNTING))
    assert isinstance(outcome, Blocked)
    assert fault.fired == 1
    outcome = await desk.carry(program, shell(COUNTING), fresh=False)
    assert isinstance(outcome, Done)
    assert desk.lines("starts") == ["start"]


# --- heartbeats --------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("script", "env"),
    [
        ("echo alive; sleep 600", {"TENURE_HEARTBEAT_S": "0.05"}),
        ("""tell heartbeat '{"every_s": 0.05}'; echo alive; sleep 600""", {}),
    ],
)
async def test_a_promise_of_heartbeats_that_is_broken_ends_the_program(
    desk: Desk, program: ProcessProgram, script: str, env: dict[str, str]
) -> None:
    outcome = await desk.carry(program, shell(f"touch on; {script}", env=env))
    assert isinstance(outcome, Failed)
    assert outcome.failure.kind is FailureClass.TIMEOUT
    assert "every 0.05 s" in outcome.failure.message
    assert (desk.home / "on").exists()
    assert desk.processes() == []


async def test_silence_without_a_promise_ends_nothing_and_no_clock_does(desk: Desk, program: ProcessProgram) -> None:
    settings = shell("until [ -e go ]; do sleep 0.01; done; echo at last")
    carrying = asyncio.create_task(desk.carry(program, settings, timeout_s=LOOK_S))
    looks = 3 * BEATS_MISSED_MAX
    await desk.until(lambda: sum(call.startswith("signals") for call in desk.hands.calls) > looks)
    (desk.home / "go").touch()
    outcome = await carrying
    assert isinstance(outcome, Done)
    assert outcome.result.output == "at last"


async def test_heartbeats_keep_it_alive(desk: Desk, program: ProcessProgram) -> None:
    beating = "for n in $(seq 40); do tell heartbeat '{\"every_s\": 0.2}'; done; echo through"
    outcome = await desk.carry(program, shell(beating, env={"TENURE_HEARTBEAT_S": "30"}))
    assert isinstance(outcome, Done)
    assert (await desk.hands.signals(AGENT, "run_1.work.1")).heartbeats == 40


async def test_a_silent_program_in_an_office_that_does_not_answer_is_not_blamed(
    desk: Desk, program: ProcessProgram
) -> None:
    desk.hands.probe = lambda agent: asyncio.sleep(0, False)  # type: ignore[method-assign, assignment]
    outcome = await desk.carry(program, shell("sleep 600", env={"TENURE_HEARTBEAT_S": "0.05"}))
    assert isinstance(outcome, Blocked)
    assert outcome.failure.kind is FailureClass.SANDBOX


def test_only_silence_that_somebody_listened_to_counts() -> None:
    pulse = Pulse(10.0, gap_s_max=6.0)
    pulse.look(Signals(), 0.0)
    pulse.look(Signals(), 3600.0)  # nobody looked for an hour
    assert pulse.silent_s == 6.0
    assert not pulse.is_missed
    for now_s in (3604.0, 3608.0, 3612.0, 3616.0, 3620.0, 3624.0):
        pulse.look(Signals(), now_s)
    assert pulse.silent_s == 30.0
    assert not pulse.is_missed
    pulse.look(Signals(), 3625.0)
    assert pulse.is_missed
    pulse.look(Signals(beats=1), 3626.0)  # whatever it tells, it lives
    assert not pulse.is_missed


def test_the_first_heartbeat_is_a_promise() -> None:
    pulse = Pulse(None, gap_s_max=1e9)
    pulse.look(Signals(beats=5), 0.0)
    pulse.look(Signals(beats=5), 1e6)
    assert not pulse.is_missed
    pulse.look(Signals(beats=6, heartbeats=1), 1e6)
    assert pulse.every_s == HEARTBEAT_S_DEFAULT
    pulse.look(Signals(beats=6, heartbeats=1), 1e6 + BEATS_MISSED_MAX * HEARTBEAT_S_DEFAULT + 1)
    assert pulse.is_missed


# --- questions ---------------------------------------------------------------------------------------------------------------
ASKING = f"""
echo start >> starts
if [ -z "$TENURE_ANSWER" ]; then
    keep '{{"asked": true}}'
    tell ask '{{"name": "colour", "text": "Which?", "options": ["red", "blue"], "evidence": "both fit"}}'
    exit {ASK_EXIT_CODE}
fi
echo "$TENURE_ANSWER $TENURE_ANSWERS $(kept)"
"""


async def test_it_asks_a_person_and_is_started_again_with_the_answer(desk: Desk, program: ProcessProgram) -> None:
    outcome = await desk.carry(program, shell(ASKING))
    assert isinstance(outcome, Asks)
    asked = outcome.question
    assert (asked.text, asked.options, asked.evidence) == ("Which?", ("red", "blue"), "both fit")
    calls = len(desk.hands.calls)
    assert await desk.carry(program, shell(ASKING)) == Asks(asked)
    assert desk.hands.calls[calls:] == [], "nothing is done before it is answered"
    assert desk.lines("starts") == ["start"]
    desk.answers[asked.id] = "blue"
    outcome = await desk.carry(program, shell(ASKING))
    assert isinstance(outcome, Done)
    assert outcome.result.output == 'blue {"colour": "blue"} {"asked": true}'
    assert desk.lines("starts") == ["start", "start"]
    again = await desk.carry(program, shell(ASKING))
    assert again == outcome, "an answer starts it once"
    assert desk.lines("starts") == ["start", "start"]


@pytest.mark.parametrize("point", ["process.ask.before/work:1", "report.before/asked:1", "report.after/asked:1"])
def test_a_worker_killed_while_it_asks_asks_the_same_question(quiet_desk: Desk, point: str) -> None:
    desk, program = quiet_desk, ProcessProgram(look_s=LOOK_S)
    desk.carry_and_die(program, shell(ASKING), point)
    outcome = asyncio.run(desk.carry(program, shell(ASKING)))
    assert isinstance(outcome, Asks)
    assert outcome.question.id == "run_1.work.1.colour"
    assert desk.lines("starts") == ["start"]
    assert len(desk.told("asked")) == 1


async def test_the_exit_code_of_a_question_without_one_is_a_failure(desk: Desk, program: ProcessProgram) -> None:
    outcome = await desk.carry(program, shell(f"exit {ASK_EXIT_CODE}"))
    assert isinstance(outcome, Failed)
    assert outcome.failure.exit_code == ASK_EXIT_CODE


# --- cancelled ---------------------------------------------------------------------------------------------------------------
WAITING = "echo start >> starts; begin=$(kept || echo none); keep 7; echo $begin >> begins; [ $begin = 7 ] || sleep 600"


async def test_nothing_runs_after_it_was_cancelled_and_the_next_worker_goes_on(
    desk: Desk, program: ProcessProgram
) -> None:
    carrying = asyncio.create_task(desk.carry(program, shell(WAITING)))
    await desk.until(lambda: bool(desk.lines("begins")))
    assert desk.processes()
    carrying.cancel()
    with pytest.raises(asyncio.CancelledError):
        await carrying
    assert desk.processes() == []
    outcome = await desk.carry(program, shell(WAITING))
    assert isinstance(outcome, Done), "it is no failure of the program that its worker had to go"
    assert desk.lines("begins") == ["none", "7"]


async def test_a_worker_that_died_before_it_ended_the_program_does_not_leave_two(
    desk: Desk, program: ProcessProgram
) -> None:
    carrying = asyncio.create_task(desk.carry(program, shell(WAITING)))
    await desk.until(lambda: bool(desk.lines("begins")))
    fault = desk.hands.add("stop_command", lambda: DoorClosed("closed"))
    carrying.cancel()
    with pytest.raises(asyncio.CancelledError):
        await carrying
    assert fault.fired == 1
    assert desk.processes()
    assert isinstance(await desk.carry(program, shell(WAITING)), Done)
    assert desk.processes() == []
    assert desk.lines("begins") == ["none", "7"]


async def test_a_worker_that_lost_its_lease_does_not_end_another_ones_program(
    desk: Desk, program: ProcessProgram
) -> None:
    settings = shell("touch on; until [ -e go ]; do sleep 0.01; done")
    late = with_lease_lost(desk.errand(settings), LeaseLost("gone"))
    carrying = asyncio.create_task(program.carry(late))
    await desk.until(lambda: (desk.home / "on").exists())
    carrying.cancel()
    with pytest.raises(asyncio.CancelledError):
        await carrying
    other = asyncio.create_task(desk.carry(program, settings))
    (desk.home / "go").touch()
    assert isinstance(await other, Done)


async def test_what_a_dead_worker_left_can_be_ended(desk: Desk, program: ProcessProgram) -> None:
    await desk.office.open_signals(AGENT, "run_1.work.1")
    carrying = asyncio.create_task(program.carry(with_lease_lost(desk.errand(shell(WAITING)), LeaseLost("gone"))))
    with pytest.raises(LeaseLost):
        await carrying
    assert desk.processes()
    await program.halt(desk.errand(shell(WAITING)))
    assert desk.processes() == []


# --- bounds ------------------------------------------------------------------------------------------------------------------
@given(st.integers(0, REPORTS_MAX), st.integers(0, 2**40), st.floats(0.1, 100))
def test_the_more_was_told_the_longer_until_the_next_report(count: int, total_bytes: int, every_s: float) -> None:
    here = spacing_s(every_s, count, total_bytes)
    assert every_s <= here <= spacing_s(every_s, count + 1, total_bytes + 1)
    if here < every_s * 2.0**DOUBLED_MAX:
        assert here == spacing_s(every_s, count + REPORTS_PER_SPACING, total_bytes) / 2


async def test_a_flood_of_checkpoints_is_told_of_seldom_and_ends_with_the_last(desk: Desk) -> None:
    errand, now_s, told = desk.errand(shell("true")), 0.0, 0
    reporting = Reporting(errand, 2.0)
    while now_s < 24 * 3600.0:
        if reporting.is_due(now_s):
            desk.journal.write_text("")  # so that this test does not read it ten thousand times
            await reporting.tell("checkpoint", "x" * 60_000, now_s)
            told += 1
        now_s += 1.0
    assert 400 < told < 1200


async def test_no_more_is_told_than_a_journal_takes(desk: Desk) -> None:
    told = 0

    def count(what: str, data: object) -> None:
        nonlocal told
        told += 1
        desk.journal.write_text("")

    desk.on_report = count
    reporting = Reporting(desk.errand(shell("true")), 0.0)
    for _ in range(REPORTS_MAX + 10):
        await reporting.must_tell("progress", "x")
    assert told == REPORTS_MAX


# --- where it is kept --------------------------------------------------------------------------------------------------------
async def test_the_database_and_the_fake_keep_the_same(control_database: Any, tmp_path: Path) -> None:
    for agent in ("analyst", "other"):
        await control_database.execute("insert into agents (name, image, stage) values (%s, 'i', 'asleep')", (agent,))
    for store in (SignalStore(control_database), FileSignals(tmp_path)):
        await check_store(store)


async def check_store(store: Any) -> None:
    await store.open("analyst", "k", {"n": [None]})
    await store.open("analyst", "k", 5)
    await store.beat("analyst", "k", 7.0)
    await store.beat("analyst", "k")
    await store.keep("analyst", "k", [1, {"a": None}])
    await store.progress("analyst", "k", "half")
    await store.ask("analyst", "k", ProgramQuestion(text="Which?", options=("a",)))
    found = await store.read("analyst", "k")
    assert found.question is not None
    assert found.question["text"] == "Which?"
    assert found == Signals([1, {"a": None}], 1, "half", 1, 5, 2, 7.0, found.question)
    for call in (store.read("other", "k"), store.beat("other", "k"), store.keep("analyst", "no", 1)):
        with pytest.raises(NotFound):
            await call
    with pytest.raises(TooLarge):
        await store.keep("analyst", "k", "x" * CHECKPOINT_BYTES_MAX)
    assert (await store.read("analyst", "k")).checkpoint == [1, {"a": None}]


async def test_an_agent_has_so_many_keys_and_no_more(control_database: Any) -> None:
    await control_database.execute("insert into agents (name, image, stage) values ('analyst', 'i', 'asleep')")
    await control_database.execute(
        "insert into signals (agent, key) select 'analyst', 'k' || n from generate_series(1, %s) n", (KEYS_MAX,)
    )
    store = SignalStore(control_database)
    await store.open("analyst", "new")
    assert await control_database.fetch_one("select count(*) as n from signals") == {"n": KEYS_MAX}
    with pytest.raises(NotFound):
        await store.read("analyst", "k1")
    assert await store.read("analyst", "k2") == await store.read("analyst", "new") == Signals()


async def test_a_program_whose_row_went_is_given_another_one(desk: Desk, program: ProcessProgram) -> None:
    settings = shell("until [ -e go ]; do sleep 0.01; done; keep 2")
    carrying = asyncio.create_task(desk.carry(program, settings))
    await desk.until(lambda: any(call.startswith("signals") for call in desk.hands.calls))
    shutil.rmtree(desk.directory / "offices" / AGENT / "signals")
    calls = len(desk.hands.calls)
    await desk.until(lambda: any(call.startswith("open_signals") for call in desk.hands.calls[calls:]))
    (desk.home / "go").touch()
    assert isinstance(await carrying, Done)
    assert desk.told("checkpoint") == [2]


async def test_a_server_that_is_away_is_no_failure_of_the_program(desk: Desk, program: ProcessProgram) -> None:
    """`PatientHands` waits for it; what comes through without them is asked again by its key."""
    fault = desk.hands.add("signals", lambda: ServerUnreachable("away"), times=1)
    assert isinstance(await desk.carry(program, shell("true")), Blocked)
    assert fault.fired == 1
    assert isinstance(await desk.carry(program, shell("true"), fresh=False), Done)
    assert json.loads(json.dumps(desk.reports())) == []
