"""Snapshots of steps, going back and forks of runs on the real parts: gVisor, btrfs, PostgreSQL, objects, worker process."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from fixtures.live import Live
from tenure import wire
from tenure.client import Agent, Run

WAIT_S = 120.0
SPOILED = """
name: spoiled
defaults: {retry: 0}
steps:
  - {id: file, run: echo good > word}
  - {id: row, sql: "create table words (word text); insert into words values ('good')"}
  - {id: object, needs: file, put: {path: word, bucket: words, name: word}}
  - id: ready
    needs: [row, object]
    run: echo ready >> progress
    verify: [{file: word}, {sql: select word from words, equals: good}]
  - id: spoil
    needs: ready
    run: |
      echo spoil-$TENURE_ATTEMPT >> progress
      [ "$TENURE_ATTEMPT" = 1 ] || exit 0
      echo bad > word
      psql -qc "update words set word = 'bad'"
      curl -sf -X PUT --data bad http://s3:9000/words/word
  - id: count
    needs: spoil
    sql: create table counted as select 1 as n; select n from counted
  - id: report
    needs: count
    run: echo report-$TENURE_ATTEMPT >> progress
    verify:
      run: |
        set -e
        grep -q good word
        psql -qAtc "select word from words" | grep -q good
        curl -sf http://s3:9000/words/word | grep -q good
"""
DAMAGED = """
name: damaged
defaults: {retry: 0}
steps:
  - {id: row, sql: "create table words (word text); insert into words values ('good')"}
  - {id: begin, needs: row, run: echo ready >> progress}
  - {id: ready, needs: begin, put: {path: progress, bucket: words, name: word}, verify: {file: progress}}
  - id: work
    needs: ready
    run: |
      echo work-$TENURE_ATTEMPT >> progress
      [ "$TENURE_ATTEMPT" != 1 ] || sleep 600
      psql -qc "insert into words values ('work')"
"""
BRANCHES = """
name: branches
defaults: {retry: {attempts: 1, delay: 0}}
steps:
  - id: base
    sql: create table done (step text); insert into done values ('base')
    verify: {sql: select count(*) from done, equals: 1}
  - id: right
    needs: base
    on_lost: retry
    run: |
      echo right-$TENURE_ATTEMPT >> progress
      until [ -e go ] || [ "$TENURE_AGENT" != ORIGIN ]; do sleep 0.05; done
      psql -qc "insert into done values ('right')"
  - id: left
    needs: base
    run: until grep -q right progress; do sleep 0.05; done; echo left >> progress
    verify: {run: grep -q left progress}
    snapshot: true
  - id: keep
    needs: left
    put: {path: progress, bucket: kept}
  - id: join
    needs: [keep, right]
    sql: insert into done values ('join')
"""


def until(holds: Callable[[], object]) -> None:
    deadline = time.monotonic() + WAIT_S
    while not holds():
        assert time.monotonic() < deadline, "it did not come"
        time.sleep(0.05)


def step_of(run: Run, step: str) -> wire.RunStep:
    return next(found for found in run.show().steps if found.id == step)


def progress(agent: Agent) -> list[str]:
    return agent.exec("cat progress").stdout.split()


def test_rung_6_brings_back_files_rows_objects_and_journal_of_one_moment(live: Live) -> None:
    agent = live.agent("spoiled")
    run = agent.run("spoil it", playbook=SPOILED).wait(WAIT_S)
    assert run.state == "succeeded", run.question
    assert step_of(run, "report").rungs == [6]
    assert progress(agent) == ["ready", "spoil-2", "report-2"]
    assert agent.exec("cat word").stdout == "good\n"
    assert agent.sql("select word from words").rows == [["good"]]
    assert agent.sql("select n from counted").rows == [[1]]
    assert agent.objects.get("words", "word") == b"good\n"
    (gone_back,) = [event for event in run.journal() if event.kind == "office_restored"]
    assert gone_back.data["undone"] == ["spoil", "count", "report"]
    taken = step_of(run, "ready").snapshots[0]
    assert (gone_back.data["snapshot"], taken.verified) == (taken.id, True)
    kept = {one.id: one for one in agent.snapshots.list()}
    assert kept[gone_back.data["before"]].kind == "before-restore"
    evidence = live.settings.snapshots_dir / agent.name / gone_back.data["before"] / "rootfs/home/agent"
    assert (evidence / "word").read_text() == "bad\n"
    assert (evidence / "progress").read_text().split() == ["ready", "spoil-1", "report-1"]
    agent.delete()


def test_an_office_that_boots_no_more_is_restored_under_its_run(live: Live) -> None:
    """A restart does not bring back what is lost of it, the snapshot of the last verified step does."""
    agent = live.agent("damaged")
    run = agent.run("go on", playbook=DAMAGED)
    until(lambda: progress(agent) == ["ready", "work-1"])
    shutil.rmtree(live.settings.volumes_dir / agent.name / "objects")
    for pid in live.sandbox_pids(agent.name):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    assert run.wait(WAIT_S).state == "succeeded", run.question
    rungs = step_of(run, "work").rungs
    assert (rungs[-2:], set(rungs[:-2]) - {4, 5}) == ([5, 6], set()), rungs
    assert progress(agent) == ["ready", "work-2"]
    assert agent.sql("select word from words").rows == [["good"], ["work"]]
    entered = [event.data for event in run.journal() if event.kind in ("rung_entered", "rung_done")]
    assert all(event.get("reason") or event["evidence"] for event in entered)
    assert agent.objects.get("words", "word") == b"ready\n"
    agent.delete()


def test_a_run_is_forked_in_the_middle_of_branches(live: Live) -> None:
    agent = live.agent("origin")
    run = agent.run("branch", playbook=BRANCHES.replace("ORIGIN", agent.name))
    until(lambda: step_of(run, "keep").state == "succeeded")
    agent.exec("touch go")
    assert run.wait(WAIT_S).state == "succeeded", run.question
    forked = run.fork("left", live.name("fork"))
    assert forked.wait(WAIT_S).state == "succeeded", forked.question
    fork = live.tenure.agents(forked.agent_name)
    # The snapshot had `right` under way; in the fork it was lost with its sandbox, and done anew. Nothing else was done twice.
    assert progress(fork) == ["right-1", "left", "right-2"]
    assert fork.sql("select step from done order by step").rows == [["base"], ["join"], ["right"]]
    assert fork.objects.get("kept", "progress") == b"right-1\nleft\n"
    assert {step.id: step.attempts for step in forked.steps} == {"base": 1, "right": 2, "left": 1, "keep": 1, "join": 1}
    assert progress(agent) == ["right-1", "left"]
    assert agent.sql("select count(*) from done").rows == [[3]]
    origin = forked.show().origin
    assert origin is not None
    assert (origin.run, origin.step) == (run.id, "left")
    for one in (agent, fork):
        one.delete()


def test_killed_between_snapshot_and_journal_it_is_neither_lost_nor_taken_twice(
    live: Live, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Worker after worker dies right after the snapshot was taken; then one lives."""
    agent, fired = live.agent("killed"), tmp_path / "fired"
    monkeypatch.setenv("TENURE_FAULT", "effect.snapshot.after/work/after:1:kill")
    monkeypatch.setenv("TENURE_FAULT_LOG", str(fired))
    live.kill()
    live.up()
    run = agent.run(
        "once", playbook="name: x\nsteps:\n  - {id: work, run: echo work >> progress, verify: {file: progress}}\n"
    )
    until(lambda: fired.exists() and len(fired.read_text().splitlines()) >= 2)
    monkeypatch.delenv("TENURE_FAULT")
    live.kill()
    live.up()
    assert run.wait(WAIT_S).state == "succeeded", run.question
    (taken,) = [one for one in agent.snapshots.list() if one.kind == "after-step"]
    assert [one.id for one in step_of(run, "work").snapshots] == [taken.id]
    assert taken.step is not None
    assert (taken.step.run, taken.step.node, taken.step.verified) == (run.id, "work", True)
    assert step_of(run, "work").snapshots[0].seq == taken.runs[run.id]
    assert progress(agent) == ["work"]
    agent.delete()
