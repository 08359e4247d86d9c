"""What an office is from inside and outside, on a real server: its own machine, its four neighbours, and nothing else."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from pathlib import Path

import pytest

from fixtures.live import Live
from tenure import wire
from tenure.client import Agent
from tenure.client.endpoint import Endpoint
from tenure.client.hands import HttpHands
from tenure.errors import AlreadyExists, DatabaseError, DiskFull, InvalidArgument, InvalidName, NotFound, TooLarge
from tenure.testing.hands_conformance import CHECKS, DISRUPTIVE_CHECKS, check_hands
from tenure.work.hands import Command, CommandState


@pytest.fixture(scope="module")
def agent(live: Live) -> Agent:
    return live.agent("worker")


def test_it_has_its_own_user_environment_hostname_and_processes(agent: Agent) -> None:
    told = agent.exec("id -un; hostname; echo $TENURE_AGENT; echo $HOME; uname -r; ps -e --no-headers | wc -l").stdout
    user, hostname, name, home, kernel, processes = told.split()
    assert (user, hostname, name, home) == ("agent", agent.name, agent.name, "/home/agent")
    assert kernel != Path("/proc/sys/kernel/osrelease").read_text().strip()
    assert int(processes) < 20
    assert agent.exec("sudo -n id -u").stdout == "0\n"


def test_sudo_is_for_the_offices_user_and_root_only(agent: Agent) -> None:
    assert agent.exec("echo in | sudo cat; sudo sh -c 'exit 5'").exit_code == 5
    assert agent.exec("sudo FOO=bar env | grep -c -e FOO=bar -e HOME=/root").stdout == "2\n"
    refused = agent.exec("sudo -u nobody sudo id")
    assert (refused.exit_code, refused.stdout) == (1, "")


def test_psql_connects_without_arguments(agent: Agent) -> None:
    assert agent.exec("psql -Atc 'select current_user, current_database()'").stdout == "agent|agent\n"


def test_objects_are_reached_by_plain_http_inside_and_by_the_api_outside(agent: Agent) -> None:
    assert agent.exec("echo from-inside | curl -sf -T - http://s3:9000/notes/one.txt").exit_code == 0
    assert agent.objects.get("notes", "one.txt") == b"from-inside\n"
    agent.objects.put("notes", "two.txt", b"from outside")
    assert agent.exec("curl -sf http://s3:9000/notes/two.txt").stdout == "from outside"
    assert [item.name for item in agent.objects.list("notes")] == ["one.txt", "two.txt"]


def test_the_api_knows_the_office_by_its_door_and_shows_only_its_own(live: Live, agent: Agent) -> None:
    other = live.agent("other")
    shown = json.loads(agent.exec("curl -sf http://api:8700/v1/agents").stdout)
    assert [item["name"] for item in shown["agents"]] == [agent.name]
    for path in (f"agents/{other.name}", f"agents/{other.name}/objects"):
        refused = agent.exec(f"curl -s -o /dev/null -w '%{{http_code}}' http://api:8700/v1/{path}").stdout
        assert refused in ("403", "404"), path
    own = agent.exec(f"curl -s -o /dev/null -w '%{{http_code}}' http://api:8700/v1/agents/{agent.name}").stdout
    assert own == "200"
    wake = agent.exec(f"curl -s -o /dev/null -w '%{{http_code}}' -X POST http://api:8700/v1/agents/{agent.name}/sleep")
    assert wake.stdout == "403"
    other.delete()


def test_an_office_can_leave_a_message(live: Live, agent: Agent) -> None:
    body = json.dumps({"subject": "hello", "body": "from the office"})
    assert (
        agent.exec(f"curl -sf -H 'content-type: application/json' -d '{body}' http://api:8700/v1/inbox").exit_code == 0
    )
    assert ("hello", agent.name) in [(message.subject, message.agent) for message in live.tenure.inbox.list()]


def test_egress_is_denied_until_it_is_allowed(live: Live, agent: Agent) -> None:
    denied = agent.exec("curl -s -o /dev/null -w '%{http_code}' -x http://egress:3128 http://example.org/").stdout
    assert denied == "403"
    assert agent.exec("curl -s --noproxy '*' --max-time 5 http://192.0.2.1/").exit_code != 0
    allowed = live.agent("installer", egress=["pip"])
    installed = allowed.exec("pip install -q six && python3 -c 'import six; print(six.__version__)'", timeout_s=240)
    assert installed.exit_code == 0, installed.stderr
    refused = agent.exec("pip install -q --retries 0 six", timeout_s=120)
    assert refused.exit_code != 0
    allowed.delete()


def test_disk_limit_holds_and_says_so(live: Live) -> None:
    small = live.agent("small", disk_gb=1.2)
    written = small.exec("head -c 2G /dev/zero > ~/big; stat -c %s ~/big", timeout_s=300)
    assert int(written.stdout) < 2 * 1024**3
    assert "No space" in written.stderr or "quota" in written.stderr.lower()
    with pytest.raises((DiskFull, DatabaseError)):
        small.sql("CREATE TABLE big AS SELECT repeat('x', 1000) FROM generate_series(1, 2000000)")
    assert small.exec("rm ~/big && echo mended").stdout == "mended\n"
    assert small.sql("SELECT 1").rows == [[1]]
    small.delete()


def test_names_and_arguments_that_are_wrong_are_clear_errors(live: Live, agent: Agent) -> None:
    with pytest.raises(AlreadyExists, match=agent.name):
        live.tenure.agents.create(agent.name)
    for name in ("", "UPPER", "../etc", "a" * 41, "-x", "x-", "a b", "é"):
        with pytest.raises(InvalidName):
            live.tenure.agents.create(name)
    with pytest.raises(InvalidArgument, match="the image alone"):
        live.tenure.agents.create("tiny", disk_gb=0.4)
    with pytest.raises(NotFound, match="tiny"):
        live.tenure.agents.get("tiny")
    with pytest.raises(NotFound, match="no-such"):
        live.tenure.agents.get("no-such")
    with pytest.raises(TooLarge):
        agent.exec("true " + "x" * 500_000)


def test_a_command_that_prints_a_gigabyte_is_bounded(live: Live, agent: Agent) -> None:
    pid = live.tenure.health().pid
    before = resident_bytes(pid)
    result = agent.exec("head -c 1G /dev/zero", timeout_s=300)
    assert result.exit_code == 0
    assert result.truncated
    assert resident_bytes(pid) - before < 200 * 1024**2


def resident_bytes(pid: int | None) -> int:
    pages = Path(f"/proc/{pid}/statm").read_text().split()[1]
    return int(pages) * 4096


SSH_OPTIONS = ["-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null", "-o", "LogLevel=ERROR"]


def test_ssh_scp_and_rsync_work_through_the_door(live: Live, agent: Agent, tmp_path: Path) -> None:
    environment = {
        "TENURE_HOME": str(live.settings.home),
        "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
        "HOME": str(tmp_path),
    }
    key = ["-i", str(live.settings.keys_dir / "id_ed25519")]
    proxy = f"ProxyCommand={sys.executable} -m tenure.cli ssh-proxy {agent.name}"
    options = [*SSH_OPTIONS, *key, "-o", proxy]

    def call(*words: str) -> str:
        done = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    target = f"agent@{agent.name}"
    assert call("ssh", *options, target, "hostname; echo $PGHOST").split() == [agent.name, "db"]
    data = bytes(range(256)) * 5000
    (tmp_path / "data.bin").write_bytes(data)
    call("scp", *options, str(tmp_path / "data.bin"), f"{target}:copied.bin")
    call("scp", *options, f"{target}:copied.bin", str(tmp_path / "back.bin"))
    assert (tmp_path / "back.bin").read_bytes() == data


async def test_a_durable_command_outlives_its_caller_and_runs_once(live: Live, agent: Agent) -> None:
    hands = HttpHands(Endpoint.find(live.settings))
    command = Command("echo once >> ~/once; sleep 0.5; exit 3")
    first = await hands.start_command(agent.name, "key-1", command)
    again = await hands.start_command(agent.name, "key-1", command)
    assert CommandState.ABSENT not in (first.state, again.state)
    ended = await hands.command_status(agent.name, "key-1", wait_s=20)
    assert (ended.state, ended.exit_code) == (CommandState.EXITED, 3)
    assert await asyncio.to_thread(lambda: agent.exec("cat ~/once").stdout) == "once\n"
    await hands.restart(agent.name)
    assert (await hands.command_status(agent.name, "key-1")).state is CommandState.EXITED
    await hands.start_command(agent.name, "key-2", Command("sleep 100"))
    await hands.restart(agent.name)
    assert (await hands.command_status(agent.name, "key-2")).state is CommandState.LOST


async def test_the_hands_of_workers_keep_their_contract(live: Live) -> None:
    agent = await asyncio.to_thread(live.agent, "hands")
    nobody = wire.BrainRequest(models=["openai:nobody"], base_url="http://127.0.0.1:1/v1")
    await asyncio.to_thread(agent.set_brain, nobody)
    held = await check_hands(HttpHands.from_settings(live.settings), agent.name)
    assert len(held) == len(CHECKS) + len(DISRUPTIVE_CHECKS)
    await asyncio.to_thread(agent.delete)
