"""Idle offices sink through the tiers of sleep; nobody's work is lost; any use brings them back."""

from __future__ import annotations

import shlex
import threading
import time
from pathlib import Path

import pytest

from fixtures.killer import Killer
from fixtures.live import Live
from fixtures.waiting import wait_until
from tenure.client import Agent
from tenure.errors import Conflict, ServerUnreachable

COUNTER = """
import time
from pathlib import Path
big = bytearray(50_000_000)
n = 0
while True:
    n += 1
    big[n % len(big)] = n % 251
    open('/home/agent/count.new', 'w').write(str(n))
    __import__('os').rename('/home/agent/count.new', '/home/agent/count')
    time.sleep(0.02)
"""

RUNS = "pgrep -xf 'python3 /home/agent/counter.py'"


def counting(agent: Agent) -> None:
    """Starts a process with memory of its own, which counts and hardly computes."""
    agent.exec(["python3", "-c", f"open('/home/agent/counter.py', 'w').write({COUNTER!r})"])
    agent.exec("setsid nohup python3 ~/counter.py >/dev/null 2>&1 & echo $! > ~/counter.pid")
    wait_until(lambda: agent.exec("cat ~/count").stdout, "the counter does not count")


def count(agent: Agent) -> int:
    return int(agent.exec("cat ~/count").stdout)


def goes_on(agent: Agent, at_least: int) -> None:
    """The process with the memory of before goes on: it never counts from the beginning again."""
    assert agent.exec(f'test "$(cat ~/counter.pid)" = "$({RUNS})"').exit_code == 0
    first = count(agent)
    assert first >= at_least
    wait_until(lambda: count(agent) > first, "the counter stands still")


def state(agent: Agent) -> str:
    return agent.show().state


def test_an_idle_office_sinks_to_each_tier_and_its_processes_go_on(live: Live) -> None:
    agent = live.agent("sinks")
    agent.sql("CREATE TABLE kept (n int); INSERT INTO kept VALUES (42)")
    agent.exec("setsid nohup sleep 10000 >/dev/null 2>&1 & echo $! > ~/pid")
    agent.rest(pause_after_s=1, hibernate_after_s=0, stop_after_s=0)
    wait_until(lambda: state(agent) == "paused", "it is not paused")
    assert agent.exec("kill -0 $(cat ~/pid)").exit_code == 0
    agent.rest(pause_after_s=1, hibernate_after_s=2, stop_after_s=0)
    wait_until(lambda: state(agent) == "hibernated", "it is not hibernated")
    assert not live.sandbox_pids(agent.name)
    assert agent.exec("kill -0 $(cat ~/pid)").exit_code == 0
    assert agent.sql("SELECT n FROM kept").rows == [[42]]
    agent.rest(pause_after_s=1, hibernate_after_s=2, stop_after_s=3)
    wait_until(lambda: state(agent) == "stopped", "it is not stopped")
    assert not any((live.settings.memory_dir / agent.name).rglob("*"))
    assert agent.exec("kill -0 $(cat ~/pid)").exit_code != 0
    assert agent.sql("SELECT n FROM kept").rows == [[42]]
    agent.delete()


@pytest.mark.parametrize("tier", ["paused", "hibernated"])
def test_processes_keep_their_memory_through(live: Live, tier: str) -> None:
    agent = live.agent(tier)
    counting(agent)
    for _ in range(3):
        before = count(agent)
        assert agent.sleep(tier).state == tier
        goes_on(agent, before)
    agent.delete()


WORK = {
    "query": "psql -c 'select pg_sleep(12)'",
    "request": "(sleep 12; echo x) | curl -sSf -T - $TENURE_OBJECTS_URL/kept/slow",
    "computation": "! timeout 12 python3 -c 'while True: pass'",
}
"""Of processes that nobody watches, each far longer than the idle limits."""


def test_work_inside_is_never_put_to_rest(live: Live) -> None:
    agents = {kind: live.agent(kind) for kind in WORK}
    ended = {kind: live.settings.volumes_dir / agent.name / "rootfs/home/agent/ended" for kind, agent in agents.items()}
    seen: dict[str, set[str]] = {kind: set() for kind in WORK}
    for kind, agent in agents.items():
        agent.sql("SELECT 1")
        agent.rest(pause_after_s=5, hibernate_after_s=5.5, stop_after_s=6)
        agent.exec(f"setsid nohup bash -c {shlex.quote(WORK[kind] + ' && echo ended > ~/ended')} > ~/said 2>&1 &")

    def finished() -> bool:
        for kind, agent in agents.items():
            if not ended[kind].exists():
                seen[kind].add(state(agent))
        return all(path.exists() for path in ended.values())

    try:
        wait_until(finished, "the work did not end")
    finally:
        assert all(states == {"awake"} for states in seen.values()), seen
    for agent in agents.values():
        wait_until(lambda agent=agent: state(agent) == "stopped", "it does not rest after its work")
        agent.delete()


def test_a_command_or_a_lease_keeps_an_office_awake(live: Live) -> None:
    agent = live.agent("busy")
    agent.rest(pause_after_s=0.5, hibernate_after_s=1, stop_after_s=1.5)
    assert agent.exec("for i in $(seq 30); do sleep 0.1; done; echo done").stdout == "done\n"
    agent.keep_awake(60, "the test watches")
    time.sleep(3)
    assert state(agent) == "awake"
    assert agent.show().lease is not None
    agent.keep_awake(0)
    wait_until(lambda: state(agent) == "stopped", "it does not rest after its lease")
    agent.delete()


def test_an_agent_keeps_itself_awake(live: Live) -> None:
    agent = live.agent("itself")
    body = '{"seconds": 3600, "reason": "a timer of mine"}'
    said = agent.exec(["curl", "-sS", "-X", "PUT", "-H", "content-type: application/json", "-d", body,
                       f"http://api:8700/v1/agents/{agent.name}/lease"])  # fmt: skip
    assert said.exit_code == 0, said.stderr
    lease = agent.show().lease
    assert lease is not None
    assert lease.reason == "a timer of mine"
    other = live.agent("another")
    refused = agent.exec(["curl", "-sS", "-X", "PUT", "-H", "content-type: application/json", "-d", body,
                          f"http://api:8700/v1/agents/{other.name}/lease"])  # fmt: skip
    assert "forbidden" in refused.stdout.lower() or "may not" in refused.stdout
    assert other.show().lease is None
    agent.delete()
    other.delete()


def test_what_cannot_be_hibernated_says_so_and_goes_on(live: Live) -> None:
    """A file that was deleted and is still open has no place in a memory image."""
    agent = live.agent("cannot")
    counting(agent)
    agent.exec("setsid nohup sh -c 'exec 9>~/gone; rm ~/gone; sleep 10000' >/dev/null 2>&1 &")
    wait_until(lambda: not agent.exec("ls ~/gone").stdout, "the file is still there")
    before = count(agent)
    with pytest.raises(Conflict, match=r"gone"):
        agent.sleep("hibernated")
    assert state(agent) == "awake"
    goes_on(agent, before)
    assert agent.sleep("paused").state == "paused"
    with pytest.raises(Conflict, match=r"gone"):
        agent.sleep("hibernated")
    assert state(agent) == "paused"
    agent.delete()


def test_a_command_at_work_is_not_hibernated_away(live: Live) -> None:
    agent = live.agent("at-work")
    done: list[str] = []
    command = threading.Thread(target=lambda: done.append(agent.exec("sleep 6; echo done").stdout))
    command.start()
    wait_until(lambda: agent.exec("pgrep -x sleep").stdout, "it does not run")
    with pytest.raises(Conflict, match=r"command"):
        agent.sleep("hibernated")
    command.join()
    assert done == ["done\n"]
    agent.delete()


def test_restoring_or_changing_the_volume_spends_the_memory_image(live: Live) -> None:
    """Old memory over other files would be a machine that never was."""
    agent = live.agent("spent")
    counting(agent)
    snapshot = agent.snapshots.create()
    agent.exec("echo later > ~/later")
    agent.sleep("hibernated")
    agent.snapshots.restore(snapshot.id)
    assert state(agent) == "stopped"
    assert agent.exec(RUNS).exit_code != 0
    assert agent.exec("cat ~/later").exit_code != 0
    agent.delete()


def test_a_damaged_memory_image_costs_the_processes_and_nothing_else(live: Live) -> None:
    agent = live.agent("damaged")
    counting(agent)
    agent.sql("CREATE TABLE kept (n int); INSERT INTO kept VALUES (7)")
    agent.sleep("hibernated")
    image = live.settings.memory_dir / agent.name
    largest = max((path for path in image.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)
    with largest.open("r+b") as file:
        file.seek(largest.stat().st_size // 2)
        old = file.read(1)
        file.seek(-1, 1)
        file.write(bytes([old[0] ^ 1]))
    assert agent.exec("cat ~/count").exit_code == 0
    assert agent.exec(RUNS).exit_code != 0
    assert agent.sql("SELECT n FROM kept").rows == [[7]]
    assert not image.exists()
    agent.delete()


def test_a_database_used_while_its_office_sleeps_rests_too(live: Live) -> None:
    agent = live.agent("data-only")
    agent.sleep()
    agent.rest(pause_after_s=1)
    assert agent.sql("SELECT 1").rows == [[1]]
    pid_file = live.settings.volumes_dir / agent.name / "postgres" / "postmaster.pid"
    assert pid_file.exists()
    assert state(agent) == "stopped"
    wait_until(lambda: not pid_file.exists(), "the database is not stopped")
    assert agent.sql("SELECT 1").rows == [[1]]
    agent.sleep()
    assert not pid_file.exists()
    agent.delete()


def test_a_statement_is_use_though_the_office_sleeps(live: Live) -> None:
    agent = live.agent("long-statement")
    agent.sleep()
    agent.rest(pause_after_s=1)
    assert agent.sql("SELECT 7 FROM pg_sleep(6)").rows == [[7]]
    assert state(agent) == "stopped"
    agent.delete()


def test_sleeping_agents_cost_rows_and_disk_only(live: Live) -> None:
    """No process, no socket, no open file for any of them, asleep since ever or again; and one of them wakes like any other."""

    def held() -> tuple[int, list[str], list[int]]:
        pid = live.tenure.health().pid
        doors = sorted(path.name for path in live.settings.doorway("x").parent.iterdir() if any(path.iterdir()))
        return len(list(Path(f"/proc/{pid}/fd").iterdir())), doors, live.sandbox_pids("scale")

    live.tenure.agents.list()
    files, doors, _ = held()
    agents = [live.tenure.agents.create(live.name("scale"), asleep=True) for _ in range(20)]
    assert {agent.state for agent in agents} == {"stopped"}
    assert agents[0].exec("echo up").stdout == "up\n"
    assert agents[0].sleep("hibernated").state == "hibernated"
    assert agents[1].exec("echo up").stdout == "up\n"
    assert agents[1].sleep("stopped").state == "stopped"
    wait_until(lambda: held()[0] <= files + 2, f"open files: {files} before, {held()[0]} with sleeping agents")
    assert held()[1:] == (doors, [])
    for agent in agents:
        assert not live.sandbox_pids(agent.name)
        agent.delete()


# --- killed in the middle ------------------------------------------------------------------------------------------------
def test_a_server_killed_in_hibernating_or_waking_loses_at_most_processes(live: Live, killer: Killer) -> None:
    agent = live.agent("killed")
    agent.sql("CREATE TABLE kept (n int); INSERT INTO kept VALUES (7)")
    counting(agent)

    killer.up("hibernate.drained")
    before = count(agent)
    with pytest.raises(ServerUnreachable):
        agent.sleep("hibernated")
    killer.died()
    killer.up("hibernate.imaged")
    goes_on(agent, before)
    before = count(agent)
    with pytest.raises(ServerUnreachable):
        agent.sleep("hibernated")
    killer.died()
    killer.up("wake.restored")
    assert state(agent) == "hibernated"
    with pytest.raises(ServerUnreachable):
        agent.exec("true")
    killer.died()
    killer.up("wake.image-spent")
    assert state(agent) == "awake"
    goes_on(agent, before)
    assert not (live.settings.memory_dir / agent.name).exists(), "a spent image could be used again"
    agent.sleep("hibernated")
    with pytest.raises(ServerUnreachable):
        agent.exec("true")
    killer.died()
    killer.up()
    assert agent.exec(RUNS).exit_code != 0, "memory of an image that was spent"
    assert agent.sql("SELECT n FROM kept").rows == [[7]]
    agent.delete()


def test_a_hundred_times_asleep_and_awake_and_nothing_is_lost(live: Live) -> None:
    """Each time a row, a line of a file and an object more, and all that were there before; by all tiers in turn."""
    agent = live.agent("hundred")
    agent.sql("CREATE TABLE kept (n int)")
    tiers = ["paused", "hibernated", "paused", "paused", "stopped"]
    for n in range(100):
        assert agent.exec(f"echo {n} >> ~/lines; tail -n1 ~/lines; wc -l < ~/lines").stdout == f"{n}\n{n + 1}\n"
        assert agent.sql(f"INSERT INTO kept VALUES ({n})") is not None
        if n % 10 == 0:
            agent.objects.put("kept", f"{n:03}", b"%d" % n)
        tier = tiers[n % len(tiers)]
        assert agent.sleep(tier).state == tier
    assert agent.exec("sort -nu ~/lines | wc -l").stdout == "100\n"
    assert agent.sql("SELECT count(*), count(DISTINCT n), sum(n) FROM kept").rows == [[100, 100, 4950]]
    assert len(agent.objects.list("kept")) == 10
    agent.delete()
