"""Whatever of an office is ruined, its next use brings it back by the cheapest step that works, or a person is asked."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from fixtures.killer import Killer
from fixtures.live import Live, is_running
from fixtures.waiting import wait_until
from tenure.client import Agent
from tenure.client.endpoint import Endpoint
from tenure.client.hands import HttpHands
from tenure.errors import InternalError, OfficeBroken, ServerUnreachable, TenureError
from tenure.work.hands import Command, CommandState

Ruin = Callable[[Path], object]
PATIENCE_S = 240.0
"""A repair boots several offices, one after the other."""


def volume_of(live: Live, agent: Agent) -> Path:
    return live.settings.volumes_dir / agent.name


def fill(agent: Agent, word: str) -> None:
    """A file, a row and an object that say `word`."""
    assert agent.exec(f"echo {word} > ~/word && sync").exit_code == 0
    agent.sql(f"create table if not exists word (word text); delete from word; insert into word values ('{word}')")
    agent.objects.put("words", "word", word)


def words(agent: Agent) -> list[str]:
    """What file, row and object say."""
    file = agent.exec("cat ~/word").stdout.strip()
    return [file, agent.sql("select word from word").rows[0][0], agent.objects.get("words", "word").decode()]


def whats(agent: Agent, since: int = 0) -> list[str]:
    """What the history says happened, in order, after the event `since`."""
    return [event.what for event in agent.history()[::-1] if event.id > since]


def now(agent: Agent) -> int:
    return max((event.id for event in agent.history()), default=0)


def stop_all(live: Live, agent: Agent) -> None:
    """Asleep, and its database stopped."""
    agent.sleep()
    pid_file = volume_of(live, agent) / "postgres/postmaster.pid"
    if pid_file.exists():
        pid = int(pid_file.read_text().split()[0])
        os.kill(pid, signal.SIGINT)
        wait_until(lambda: not is_running(pid), "PostgreSQL did not stop")


def patiently(ask: Callable[[], object]) -> object:
    """For what is mended in the background: whoever needs it meanwhile gets the error."""
    deadline = time.monotonic() + PATIENCE_S
    while True:
        try:
            return ask()
        except InternalError:
            assert time.monotonic() < deadline
            time.sleep(0.1)


def has_recovered(agent: Agent, since: int) -> None:
    """Returns when the episode since the event `since` has ended well."""
    deadline = time.monotonic() + PATIENCE_S
    while "recovered" not in (happened := whats(agent, since)):
        assert time.monotonic() < deadline, happened
        time.sleep(0.1)


@pytest.fixture(scope="module")
def agent(live: Live) -> Iterator[Agent]:
    made = live.agent("ill")
    fill(made, "first")
    made.snapshots.create("good")
    yield made
    made.delete()


# --- the root --------------------------------------------------------------------------------------------------------------
def scramble(path: str) -> Ruin:
    return lambda root: (root / path).write_bytes(b"scrambled" * 1000)


def lose(*paths: str) -> Ruin:
    def ruin(root: Path) -> None:
        for path in paths:
            if (root / path).is_dir() and not (root / path).is_symlink():
                shutil.rmtree(root / path)
            else:
                (root / path).unlink()

    return ruin


def aside(*paths: str) -> Ruin:
    """They are gone, without the time that deleting takes."""

    def ruin(root: Path) -> None:
        for number, path in enumerate(paths):
            (root / path).rename(root.parent / f"gone-{number}")

    return ruin


def spool_is_a_file(root: Path) -> None:
    shutil.rmtree(root / "var/lib/tenure")
    (root / "var/lib/tenure").write_text("in the way")


RUINS: dict[str, tuple[Ruin, list[str]]] = {
    "bash": (lose("usr/bin/bash"), ["mended"]),
    "tini": (lose("usr/bin/tini-static"), ["mended"]),
    "sshd": (lose("usr/sbin/sshd"), ["mended"]),
    "passwd": (scramble("etc/passwd"), ["mended"]),
    "the loader's link": (lose("lib64"), ["mended"]),
    "all of /etc and /usr/bin": (aside("etc", "usr/bin"), ["mended"]),
    "libc": (scramble("usr/lib/x86_64-linux-gnu/libc.so.6"), ["boot-failed", "still-fails", "mended", "recovered"]),
}


@pytest.mark.parametrize("ruined", RUINS)
def test_a_ruined_root_is_mended_and_no_work_is_lost(live: Live, agent: Agent, ruined: str) -> None:
    ruin, expected = RUINS[ruined]
    fill(agent, ruined.split()[0])
    agent.sleep()
    ruin(volume_of(live, agent) / "rootfs")
    began = now(agent)
    assert words(agent) == [ruined.split()[0]] * 3
    happened = whats(agent, began)
    assert happened[0] == expected[0]
    assert happened[-1] == expected[-1]
    assert set(happened) == set(expected)
    assert agent.exec("test -x /usr/sbin/sshd && id -un && python3 -c 'print(1)'").stdout == "agent\n1\n"


async def test_jobs_run_where_their_spool_was_ruined(live: Live, agent: Agent) -> None:
    agent.sleep()
    spool_is_a_file(volume_of(live, agent) / "rootfs")
    hands = HttpHands(Endpoint.find(live.settings))
    status = await hands.start_command(agent.name, "after", Command("echo job"))
    while status.state is CommandState.RUNNING:
        status = await hands.command_status(agent.name, "after", wait_s=5)
    assert (status.state, status.output) == (CommandState.EXITED, "job\n")


# --- the database ----------------------------------------------------------------------------------------------------------
def test_ruined_configuration_of_the_database_costs_nothing(live: Live, agent: Agent) -> None:
    fill(agent, "second")
    stop_all(live, agent)
    data = volume_of(live, agent) / "postgres"
    (data / "postgresql.conf").write_text("port = nonsense\n")
    (data / "pg_hba.conf").unlink()
    (data / "postmaster.pid").write_text("nonsense\n")
    began = now(agent)
    with pytest.raises(InternalError, match="did not start"):
        agent.sql("select 1")
    patiently(lambda: agent.sql("select 1"))
    assert words(agent) == ["second"] * 3
    has_recovered(agent, began)
    assert "restored" not in whats(agent, began)


def test_ruined_data_of_the_database_are_restored_by_a_snapshot_and_what_was_there_is_kept(
    live: Live, agent: Agent
) -> None:
    fill(agent, "third")
    stop_all(live, agent)
    control = volume_of(live, agent) / "postgres/global/pg_control"
    control.write_bytes(bytes(control.stat().st_size))
    began = now(agent)
    with pytest.raises(InternalError, match="did not start"):
        agent.sql("select 1")
    has_recovered(agent, began)
    assert words(agent) == ["first"] * 3, "the whole office is of one instant"
    steps = [step for step in whats(agent, began) if step not in ("still-fails", "mended")]
    assert steps == ["boot-failed", "host-tested", "restored", "recovered"]
    restored = next(event for event in agent.history() if event.what == "restored")
    before = next(one for one in agent.snapshots.list() if one.id == restored.evidence["before"])
    assert before.kind == "before-restore"
    kept = live.settings.snapshots_dir / agent.name / before.id
    assert (kept / "rootfs/home/agent/word").read_text() == "third\n", "newer work is not thrown away"
    message = next(one for one in live.tenure.inbox.list() if one.agent == agent.name)
    assert before.id in message.body
    agent.sleep()
    assert not (live.settings.snapshots_dir / ".trial" / agent.name).exists()


# --- the volume, and the machine -------------------------------------------------------------------------------------------
def test_a_lost_volume_comes_back_of_its_snapshot_and_without_one_a_person_is_asked_once(live: Live) -> None:
    lost = live.agent("lost")
    fill(lost, "kept")
    lost.snapshots.create("good")
    lost.sleep()
    stop_all(live, lost)
    aside = live.settings.volumes_dir / f".aside-{lost.name}"
    subprocess.run(["btrfs", "subvolume", "delete", volume_of(live, lost)], check=True, capture_output=True)
    assert words(lost) == ["kept"] * 3
    stop_all(live, lost)
    lost.snapshots.delete("good")
    volume_of(live, lost).rename(aside)
    began = now(lost)
    for _ in range(3):
        with pytest.raises(OfficeBroken, match="a person is needed"):
            lost.exec("true")
    assert whats(lost, began) == ["boot-failed", "gave-up"], "it was tried again and again"
    assert lost.show().state == "broken"
    live.kill()
    live.up()
    assert lost.show().state == "broken", "a new server forgot that a person is needed"
    with pytest.raises(OfficeBroken):
        lost.exec("true")
    assert whats(lost, began) == ["boot-failed", "gave-up"]
    asked = [one for one in live.tenure.inbox.list() if one.agent == lost.name and "is broken" in one.subject]
    assert len(asked) == 1
    with pytest.raises(TenureError, match="missing"):
        lost.wake()  # somebody acts: it is tried once more
    assert whats(lost, began)[2:] == ["cleared", "boot-failed", "gave-up"]
    aside.rename(volume_of(live, lost))
    assert words(lost) == ["kept"] * 3, "the cause is gone"
    assert whats(lost, began)[5:] == ["cleared"]
    lost.delete()


def test_no_office_is_replaced_when_it_is_the_machine_that_does_not_boot_any(live: Live, agent: Agent) -> None:
    fill(agent, "fourth")
    agent.sleep()
    officed = live.settings.officed_dir
    shared = officed.readlink()
    officed.unlink()
    officed.mkdir()
    try:
        (officed / "officed").write_text("no program")
        (officed / "officed").chmod(0o755)
        began = now(agent)
        with pytest.raises(OfficeBroken, match="it is the machine"):
            agent.exec("true")
        assert not {"restored", "rebuilt"} & set(whats(agent, began))
    finally:
        shutil.rmtree(officed)
        officed.symlink_to(shared)
    assert words(agent) == ["fourth"] * 3, "mended from outside: nobody has to say so"


# --- rebuilding ------------------------------------------------------------------------------------------------------------
def set_up_again(agent: Agent, since: int) -> None:
    wait_until(lambda: "set-up" in whats(agent, since), "it was not set up again")


SETUP = "mkdir -p ~/.config/tenure && echo 'echo again > ~/set-up' > ~/.config/tenure/setup.sh"


def test_a_rebuild_keeps_the_work_makes_the_rest_anew_and_can_be_undone(live: Live) -> None:
    agent = live.agent("rebuilt")
    fill(agent, "work")
    before_key = agent.exec("cat /etc/ssh/ssh_host_ed25519_key.pub").stdout
    mine = "mkdir -p /srv/site /opt/tool && echo s > /srv/site/index && echo '#!/bin/sh' > /usr/local/bin/own"
    clutter = "echo x > /usr/bin/clutter && echo y > /etc/clutter && rm -rf /usr/share/doc /usr/bin/jq"
    people = "useradd -m helper"
    assert agent.exec(f"{mine} && {clutter} && {people}", user="root").exit_code == 0
    assert agent.exec(SETUP).exit_code == 0
    done = agent.rebuild()
    assert done.set_up.script
    assert done.before.kind == "before-restore"
    assert words(agent) == ["work"] * 3
    assert agent.exec("cat /etc/ssh/ssh_host_ed25519_key.pub").stdout == before_key
    assert agent.exec("cat /srv/site/index; ls /opt; ls /usr/local/bin; stat -c %U /home/helper; which jq").stdout.split() == [
        "s", "tool", "own", "sudo", "helper", "/usr/bin/jq",
    ]  # fmt: skip
    assert agent.exec("ls /usr/bin/clutter /etc/clutter").exit_code != 0
    wait_until(lambda: "set-up" in whats(agent), "it was not set up again")
    assert agent.exec("cat ~/set-up").stdout == "again\n"
    agent.snapshots.restore(done.before.id)
    assert agent.exec("cat /usr/bin/clutter /etc/clutter").stdout == "x\ny\n"
    agent.delete()


def test_a_rebuild_installs_again_what_was_installed_through_the_egress(live: Live) -> None:
    agent = live.agent("furnished", egress=["pip", "apt"])
    installed = (
        "apt-get update -qq && apt-get install -y -qq hello && pip install -q --break-system-packages six==1.17.0"
    )
    done = agent.exec(installed, user="root", timeout_s=300)
    assert done.exit_code == 0, done.stderr
    rebuilt = agent.rebuild()
    assert rebuilt.set_up.packages == ["hello"]
    assert rebuilt.set_up.pip == ["six==1.17.0"]
    set_up_again(agent, 0)
    assert agent.exec("hello && python3 -c 'import six; print(six.__version__)'").stdout == "Hello, world!\n1.17.0\n"
    agent.delete()


def test_a_server_killed_in_rebuilding_leaves_the_old_office_or_the_new_one(live: Live, killer: Killer) -> None:
    agent = live.agent("half-built")
    fill(agent, "whole")
    agent.exec(SETUP)
    agent.exec("echo old > /usr/old", user="root")
    for point, new in (("trial.booted", False), ("restore.moved-away", True), ("restore.placed", True)):
        killer.pid = 0  # the last server runs on
        killer.up(point)
        agent.exec("rm -f ~/set-up")
        began = now(agent)
        with pytest.raises(ServerUnreachable):
            agent.rebuild()
        killer.died()
        killer.up()
        assert words(agent) == ["whole"] * 3, point
        assert (agent.exec("cat /usr/old").exit_code != 0) is new, point
        if new:
            set_up_again(agent, began)
            assert agent.exec("cat ~/set-up").stdout == "again\n"
        else:
            assert whats(agent, began)[-1] == "not-rebuilt"
        assert not (live.settings.snapshots_dir / ".trial" / agent.name).exists()
        assert not (live.settings.snapshots_dir / ".staged" / agent.name).exists()
        assert not live.sandbox_pids(f"0-{agent.name}")
    agent.delete()


# --- killed in the middle of a boot ----------------------------------------------------------------------------------------
def test_a_server_killed_at_a_stage_of_a_wake_leaves_an_office_that_wakes(live: Live, killer: Killer) -> None:
    agent = live.agent("waking")
    fill(agent, "safe")
    for stage in ("check", "furnish", "sandbox", "door", "probe"):
        killer.up(f"boot.{stage}")
        agent.sleep()
        with pytest.raises(ServerUnreachable):
            agent.exec("true")
        killer.died()
    killer.up()
    assert words(agent) == ["safe"] * 3
    agent.delete()
