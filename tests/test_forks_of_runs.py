"""A fork of a run goes on from the moment of a step, with office and journal as they were then; its origin stays as it is."""

from __future__ import annotations

import pytest

from fixtures.stage import Stage, step_of, words_of
from fixtures.workers import at_rest
from tenure import wire
from tenure.errors import InvalidArgument, NotFound, PlaybookError

BRANCHES = """
name: branches
inputs: {last: join}
defaults: {retry: {attempts: 1, delay: 0}}
steps:
  - id: base
    run: echo base >> effects
    verify: {file: effects}
    snapshot: true
  - id: left
    needs: base
    run: until grep -q right effects; do sleep 0.02; done; echo left >> effects
    verify: {run: grep -q left effects}
    snapshot: true
  - id: right
    needs: base
    on_lost: retry
    run: echo right-$TENURE_ATTEMPT >> effects; until [ -e ../go ]; do sleep 0.02; done; echo right-done >> effects
  - id: row
    needs: base
    sql: create table rows (n int); insert into rows values (1)
  - id: join
    needs: [left, right, row]
    run: echo ${{ inputs.last }} >> effects
  - id: tell
    needs: join
    notify: done
"""


async def fork(
    stage: Stage,
    run: wire.Run,
    at: str,
    new: str = "fork",
    *,
    before: bool | None = None,
    playbook: str | None = None,
    inputs: dict[str, object] | None = None,
) -> wire.Run:
    """As the API does it."""
    there = stage.office.snapshots(run.agent)
    point = await stage.runs.fork_point(
        run.id, at, there=there, before=before, playbook=playbook, playbook_name="new.yaml", inputs=inputs
    )
    stage.office.fork(run.agent, new, point.snapshot.id)
    (stage.home.parent.parent / new / "go").touch()
    return await stage.runs.fork(point, new)


async def finished(stage: Stage) -> wire.Run:
    """A run of `BRANCHES` whose branch `right` was under way when `left` had its snapshot."""
    run_id = await stage.begin(BRANCHES)

    async def is_left_done() -> bool:
        return step_of(await stage.runs.get(run_id), "left").state is wire.StepState.SUCCEEDED

    while not await is_left_done():
        await stage.rest()
    (stage.home.parent / "go").touch()
    return await at_rest(stage.runs, run_id)


def effects_of(stage: Stage, agent: str) -> list[str]:
    return words_of(stage.home.parent.parent / agent / "home" / "effects")


async def test_a_fork_in_the_middle_of_branches_has_office_and_journal_of_one_moment(stage: Stage) -> None:
    run = await finished(stage)
    assert stage.effects() == ["base", "right-1", "left", "right-done", "join"]
    forked = await fork(stage, run, "left")
    assert (forked.agent, forked.goal) == ("fork", run.goal)
    assert forked.origin is not None
    taken = step_of(run, "left").snapshots[0]
    assert (forked.origin.run, forked.origin.step, forked.origin.snapshot) == (run.id, "left", taken.id)
    done = await at_rest(stage.runs, forked.id)
    assert done.state == "succeeded", done.question
    # What was done by then was not done again; the branch that was under way was, once; what came later as well.
    assert effects_of(stage, "fork") == ["base", "right-1", "left", "right-2", "right-done", "join"]
    assert (await stage.office.sql("fork", "select n from rows")).rows == [[1]]
    assert {step.id: step.attempts for step in done.steps} == {
        "base": 1, "left": 1, "right": 2, "row": 1, "join": 1, "tell": 1
    }  # fmt: skip
    assert [message["subject"] for message in stage.office.messages("fork")] == ["done"]


async def test_a_forks_journal_is_its_origins_up_to_the_moment(stage: Stage) -> None:
    run = await finished(stage)
    forked = await at_rest(stage.runs, (await fork(stage, run, "left")).id)
    old, new = await stage.events(run), await stage.events(forked)
    (cut,) = [index for index, event in enumerate(new) if event.kind == "forked"]
    moment = step_of(run, "left").snapshots[0].seq
    assert [event.seq for event in new] == list(range(1, len(new) + 1))
    assert [(e.kind, e.step, e.data, e.at) for e in new[: cut - 1]] == [
        (e.kind, e.step, e.data, e.at) for e in old if e.seq <= moment
    ]
    assert (new[cut - 1].kind, new[cut - 1].step) == ("step_succeeded", "left")
    keys = {e.data["key"] for e in new[cut:] if e.kind == "step_started"}
    assert keys
    assert all(key.startswith(forked.id) for key in keys), "an attempt of its own under another run's key"


async def test_the_origin_stays_as_it_is(stage: Stage) -> None:
    run = await finished(stage)
    before = await stage.events(run)
    await at_rest(stage.runs, (await fork(stage, run, "base")).id)
    assert await stage.events(run) == before
    assert stage.effects() == ["base", "right-1", "left", "right-done", "join"]


async def test_a_fork_of_a_fork_goes_back_only_to_its_own_office(stage: Stage) -> None:
    run = await finished(stage)
    forked = await at_rest(stage.runs, (await fork(stage, run, "base")).id)
    assert effects_of(stage, "fork")[0] == "base"
    assert step_of(forked, "base").snapshots == [], "a snapshot of another office"
    again = await at_rest(stage.runs, (await fork(stage, forked, "left", "second")).id)
    assert again.state == "succeeded"
    assert effects_of(stage, "second").count("left") == 1
    with pytest.raises(NotFound, match="no snapshot from before or after base"):
        await fork(stage, forked, "base", "third")


async def test_a_fork_before_a_risky_step_does_that_step_anew(stage: Stage) -> None:
    run = await stage.finish("run: echo work >> effects\nrisky: true\nverify: {file: effects}\nsnapshot: true")
    forked = await at_rest(stage.runs, (await fork(stage, run, "work", before=True)).id)
    assert effects_of(stage, "fork") == ["work", "after"]
    assert step_of(forked).attempts == 1
    after = await at_rest(stage.runs, (await fork(stage, run, "work", "second")).id)
    assert after.origin is not None
    assert not after.origin.before
    assert effects_of(stage, "second") == ["work", "after"]


async def test_another_playbook_goes_on_where_the_first_one_was(stage: Stage) -> None:
    run = await finished(stage)
    other = BRANCHES.replace(
        "- id: join\n    needs: [left, right, row]", "- id: instead\n    needs: [left, row]"
    ).replace("needs: join\n    notify: done", "needs: instead\n    run: echo told >> effects")
    forked = await at_rest(stage.runs, (await fork(stage, run, "left", playbook=other, inputs={"last": "else"})).id)
    assert forked.state == "succeeded", forked.question
    effects = effects_of(stage, "fork")
    assert [word for word in effects if not word.startswith("right")] == ["base", "left", "else", "told"]
    assert [step.id for step in forked.steps] == ["base", "left", "right", "row", "instead", "tell"]


async def test_what_is_done_must_be_the_same_in_another_playbook(stage: Stage) -> None:
    run = await finished(stage)
    with pytest.raises(InvalidArgument, match=r"base is done by then, and does something else in the new playbook"):
        await fork(stage, run, "left", playbook=BRANCHES.replace("echo base", "echo basis"))
    gone = BRANCHES.replace("- id: right\n", "- id: wrong\n").replace("left, right, row", "left, wrong, row")
    with pytest.raises(InvalidArgument, match=r"right has begun by then, and is not in the new playbook"):
        await fork(stage, run, "left", playbook=gone)
    with pytest.raises(PlaybookError, match=r"new.yaml"):
        await fork(stage, run, "left", playbook="name: x\n")
    with pytest.raises(InvalidArgument, match="need a playbook"):
        await fork(stage, run, "left", inputs={"last": "x"})
    assert len(await stage.runs.list()) == 1


async def test_a_step_without_a_snapshot_is_an_error_that_says_which_have_one(stage: Stage) -> None:
    run = await finished(stage)
    with pytest.raises(NotFound, match="no snapshot from before or after join") as refused:
        await fork(stage, run, "join")
    assert refused.value.hint == "There is one: after base, after left."
    with pytest.raises(NotFound, match="no snapshot from before left") as refused:
        await fork(stage, run, "left", before=True)
    with pytest.raises(NotFound, match="no step 'nothing'") as refused:
        await fork(stage, run, "nothing")
    assert "base, left, right" in refused.value.hint
    stage.office.drop_snapshot("analyst", step_of(run, "left").snapshots[0].id)
    with pytest.raises(NotFound) as refused:
        await fork(stage, run, "left")
    assert refused.value.hint == "There is one: after base."
    stage.office.drop_snapshot("analyst", step_of(run, "base").snapshots[0].id)
    with pytest.raises(NotFound) as refused:
        await fork(stage, run, "left")
    assert "`verify`" in refused.value.hint


async def test_a_run_that_asks_is_forked_and_asks_no_more(stage: Stage) -> None:
    """Whoever asked begins anew in the fork, with all rungs."""
    run_id = await stage.begin("""
name: asks
defaults: {retry: 0}
steps:
  - {id: bad, run: test -e mended}
  - {id: good, needs: [], run: 'until grep -q 1 OUTSIDE; do sleep 0.02; done; touch mended', snapshot: true}
""")
    run = await stage.runs.get(run_id)
    while step_of(run, "bad").rungs != [8]:
        await stage.rest()
        run = await stage.runs.get(run_id)
    stage.outside.write_text("1\n")
    run = await at_rest(stage.runs, run_id)
    assert run.state == "parked"
    forked = await at_rest(stage.runs, (await fork(stage, run, "good")).id)
    assert forked.state == "succeeded", "its step found the file that was there at that moment"
