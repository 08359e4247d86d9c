"""What an office holds is there tomorrow: across sleep, a new server, and every part killed with SIGKILL."""

from __future__ import annotations

import os
import signal

import pytest

from fixtures.live import Live, is_running
from fixtures.waiting import wait_until
from tenure.client import Agent
from tenure.errors import NotFound


def fill(agent: Agent) -> None:
    """A file, an installed package and a table."""
    assert agent.exec("echo kept > ~/file && sync").exit_code == 0
    package = "mkdir -p /tmp/p/keepsake && cd /tmp/p && echo 'WORD = 42' > keepsake/__init__.py && " + (
        "python3 -c 'import site; print(site.getusersitepackages())' | xargs -I{} sh -c 'mkdir -p {} && cp -r keepsake {}'"
    )
    assert agent.exec(package).exit_code == 0
    agent.sql("CREATE TABLE kept (n int); INSERT INTO kept SELECT generate_series(1, 1000)")
    agent.objects.put("things", "a/b.bin", bytes(range(256)))


def holds(agent: Agent) -> None:
    """All that `fill` left is there, whole."""
    assert agent.exec("cat ~/file").stdout == "kept\n"
    assert agent.exec("python3 -c 'import keepsake; print(keepsake.WORD)'").stdout == "42\n"
    assert agent.sql("SELECT count(*), sum(n) FROM kept").rows == [[1000, 500500]]
    assert agent.objects.get("things", "a/b.bin") == bytes(range(256))


@pytest.fixture(scope="module")
def filled(live: Live) -> Agent:
    agent = live.agent("kept")
    fill(agent)
    return agent


def test_sleep_keeps_everything_and_any_use_wakes(live: Live, filled: Agent) -> None:
    filled.sleep()
    assert filled.show().state == "stopped"
    assert not live.sandbox_pids(filled.name)
    holds(filled)
    assert filled.show().state == "awake"


def test_a_killed_server_leaves_offices_running_and_adopts_them(live: Live, filled: Agent) -> None:
    filled.exec("nohup sh -c 'while :; do date +%s%N > ~/tick; sleep 0.1; done' >/dev/null 2>&1 &")
    before = live.sandbox_pids(filled.name)
    assert before
    live.kill()
    assert all(is_running(pid) for pid in before)
    live.up()
    assert live.sandbox_pids(filled.name) == before
    holds(filled)
    first = filled.exec("cat ~/tick").stdout
    wait_until(lambda: filled.exec("cat ~/tick").stdout not in ("", first), "the process in the office stopped")


def test_a_killed_sandbox_is_started_again_by_the_next_use(live: Live, filled: Agent) -> None:
    for pid in live.sandbox_pids(filled.name):
        os.kill(pid, signal.SIGKILL)
    wait_until(lambda: not live.sandbox_pids(filled.name), "the sandbox did not die")
    holds(filled)


def test_a_killed_database_comes_back_with_every_committed_row(live: Live, filled: Agent) -> None:
    filled.sql("INSERT INTO kept VALUES (0)")
    pid_file = live.settings.volumes_dir / filled.name / "postgres" / "postmaster.pid"
    pid = int(pid_file.read_text().split()[0])
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: not is_running(pid), "PostgreSQL did not die")
    assert filled.sql("SELECT count(*), sum(n) FROM kept").rows == [[1001, 500500]]
    filled.sql("DELETE FROM kept WHERE n = 0")


def test_an_orderly_restart_of_the_server_keeps_everything(live: Live, filled: Agent) -> None:
    from tenure.server import daemon

    daemon.down(live.settings)
    assert not live.sandbox_pids(filled.name)
    live.up()
    assert filled.show().state == "stopped"
    holds(filled)


def test_a_deleted_office_leaves_nothing(live: Live) -> None:
    agent = live.agent("gone")
    fill(agent)
    agent.delete()
    with pytest.raises(NotFound):
        agent.show()
    assert not live.sandbox_pids(agent.name)
    assert not (live.settings.volumes_dir / agent.name).exists()
    assert not live.settings.doorway(agent.name).exists()
    again = live.tenure.agents.create(agent.name)
    assert again.exec("ls ~/file").exit_code != 0
    assert again.objects.list() == []
    again.delete()
