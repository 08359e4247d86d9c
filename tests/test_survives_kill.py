"""The whole system under SIGKILL: a run on real parts finishes, and each of its effects happened exactly once.

`test_exactly_once.py` kills a worker before and after every single journal write and effect; here server, worker, sandbox
and database are killed together and apart, on a real machine, while commands run.
"""

from __future__ import annotations

import os
import signal
import time

import pytest

from fixtures.live import Live
from tenure import wire
from tenure.client import Agent, Run

PLAYBOOK = """
name: survive
defaults: {retry: {attempts: 3, delay: 1s}}
concurrency: 4
steps:
  - id: table
    sql: create table effects (step text, at timestamptz default clock_timestamp())
  - id: work
    needs: table
    for_each: [1, 2, 3, 4, 5, 6]
    run: |
      echo ${{ item }} >> ~/ran-${{ item }}
      sleep 1.5
      echo ${{ item }} >> ~/finished-${{ item }}
  - id: insert
    needs: table
    for_each: [1, 2, 3, 4, 5, 6]
    sql: insert into effects (step) select 'insert-${{ item }}' from pg_sleep(0.3)
  - id: keep
    needs: [work, insert]
    put: {path: finished-1, bucket: kept}
  - id: tell
    needs: keep
    notify: {subject: survived}
"""
RUN_WAIT_S = 180.0


@pytest.fixture
def agent(live: Live) -> Agent:
    return live.agent("survivor")


def until(run: Run, progress: float) -> None:
    """Waits until this share of the steps has succeeded."""
    deadline = time.monotonic() + RUN_WAIT_S
    while time.monotonic() < deadline:
        steps = run.show().steps
        if steps and sum(step.state is wire.StepState.SUCCEEDED for step in steps) >= progress * len(steps):
            return
        time.sleep(0.02)
    pytest.fail("the run made no progress")


def check(live: Live, agent: Agent, run: Run) -> None:
    info = run.wait(RUN_WAIT_S).show()
    assert info.state is wire.RunState.SUCCEEDED, info
    counted = agent.sql("select step, count(*) from effects group by step order by step").rows
    assert counted == [[f"insert-{n}", 1] for n in range(1, 7)]
    for n in range(1, 7):
        assert agent.exec(f"cat ~/ran-{n} ~/finished-{n}").stdout == f"{n}\n{n}\n"
    assert [item.name for item in agent.objects.list("kept")] == ["finished-1"]
    assert [message.subject for message in live.tenure.inbox.list() if message.run_id == run.id] == ["survived"]
    sequence = [event.seq for event in run.events()]
    assert sequence == list(range(1, len(sequence) + 1))
    succeeded = [event.step for event in run.events() if event.kind == "step_succeeded"]
    assert len(succeeded) == len(set(succeeded))


@pytest.mark.parametrize("progress", [0.05, 0.35, 0.7])
def test_server_and_worker_killed(live: Live, agent: Agent, progress: float) -> None:
    run = agent.run("survive", playbook=PLAYBOOK)
    until(run, progress)
    live.kill()
    live.up()
    check(live, agent, run)
    agent.delete()


def test_worker_killed_again_and_again(live: Live, agent: Agent) -> None:
    run = agent.run("survive", playbook=PLAYBOOK)
    killed = 0
    while not run.show().state.at_rest and killed < 5:
        for worker in live.tenure.health().workers:
            os.kill(worker.pid, signal.SIGKILL)
            killed += 1
        time.sleep(1.5)
    assert killed >= 2
    check(live, agent, run)
    agent.delete()


def test_database_killed(live: Live, agent: Agent) -> None:
    run = agent.run("survive", playbook=PLAYBOOK)
    until(run, 0.2)
    pid_file = live.settings.volumes_dir / agent.name / "postgres" / "postmaster.pid"
    os.kill(int(pid_file.read_text().split()[0]), signal.SIGKILL)
    check(live, agent, run)
    agent.delete()


def test_a_killed_sandbox_leaves_its_steps_unverified_and_a_person_is_asked(live: Live, agent: Agent) -> None:
    """A command that was running when its machine died may or may not have had its effect: it is not repeated blindly."""
    playbook = "name: lost\nsteps:\n  - id: once\n    run: echo ran >> ~/ran; sleep 30\n"
    run = agent.run("lost", playbook=playbook)
    deadline = time.monotonic() + RUN_WAIT_S
    while agent.exec("cat ~/ran").stdout != "ran\n" and time.monotonic() < deadline:
        time.sleep(0.05)
    for pid in live.sandbox_pids(agent.name):
        os.kill(pid, signal.SIGKILL)
    info = run.wait(RUN_WAIT_S).show()
    assert info.state is wire.RunState.PARKED
    assert info.question
    assert info.steps[0].state is wire.StepState.UNVERIFIED
    assert agent.exec("cat ~/ran").stdout == "ran\n"
    agent.delete()


def test_a_killed_sandbox_is_restarted_for_a_step_that_can_be_verified(live: Live, agent: Agent) -> None:
    playbook = """
name: verified
steps:
  - id: idempotent
    run: echo begun >> ~/begun; sleep 3; echo done > ~/done
    verify: {run: "grep -q done ~/done"}
    retry: {attempts: 3, delay: 1s}
"""
    run = agent.run("verified", playbook=playbook)
    deadline = time.monotonic() + RUN_WAIT_S
    while agent.exec("cat ~/begun").stdout != "begun\n" and time.monotonic() < deadline:
        time.sleep(0.05)
    for pid in live.sandbox_pids(agent.name):
        os.kill(pid, signal.SIGKILL)
    info = run.wait(RUN_WAIT_S).show()
    assert info.state is wire.RunState.SUCCEEDED, info
    assert info.steps[0].attempts == 2
    agent.delete()
