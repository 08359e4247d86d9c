"""An office leaves the machine as one file, to a path or to S3, and comes back whole as another agent, or not at all."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from fixtures.live import Live, is_running
from fixtures.s3 import S3, serve_s3
from tenure import AsyncTenure, Tenure, wire
from tenure.archive_head import SUFFIX
from tenure.client import Agent
from tenure.errors import (
    AlreadyExists,
    ArchiveError,
    InvalidArgument,
    NotFound,
    ServerUnreachable,
    StorageError,
    TenureError,
)
from tenure.export_keys import new_key, write_key
from tenure.server import daemon
from tenure.settings import Settings

WAIT_S = 120.0
SLIM = r"""
rm -rf /usr/share /usr/include /usr/lib/gcc* /usr/lib/python3* /usr/lib/git-core /usr/lib/x86_64-linux-gnu/perl* /usr/libexec
find / -xdev -type f -size +100k ! -name bash ! -name 'ld-*' ! -name 'lib[cmz].so*' ! -name 'libcrypto*' ! -name 'libselinux*' \
    ! -name 'libpcre2*' ! -name 'libtinfo*' ! -name 'tini*' ! -name sshd ! -path '/usr/bin/[a-s]*' -delete
"""
"""What most of the image is goes, so that the tests do not move it about: what is left boots and runs a shell."""


@pytest.fixture(scope="module")
def s3() -> Iterator[S3]:
    with serve_s3() as s3:
        yield s3


@pytest.fixture(scope="module")
def exporting(s3: S3, new_settings: Callable[[], Settings]) -> Iterator[Live]:
    """A server that has credentials for the S3."""
    settings = new_settings()
    with pytest.MonkeyPatch.context() as patch:
        for name, value in s3.environment.items():
            patch.setenv(name, value)
        daemon.up(settings, foreground=False)
        count = iter(range(1000))
        try:
            with Tenure(settings) as tenure:
                yield Live(settings, tenure, lambda label: f"{label}-{next(count)}")
        finally:
            daemon.down(settings)


def fill(agent: Agent, word: str) -> None:
    """A file, a row and an object that say `word`."""
    assert agent.exec(f"echo {word} > ~/word && chmod 640 ~/word && sync").exit_code == 0
    agent.sql(f"create table if not exists word (word text); delete from word; insert into word values ('{word}')")
    agent.objects.put("words", "word", word)


def words(agent: Agent) -> set[str]:
    file = agent.exec("cat ~/word").stdout.strip()
    return {file, agent.sql("select word from word").rows[0][0], agent.objects.get("words", "word").decode()}


@pytest.fixture(scope="module")
def agent(exporting: Live) -> Agent:
    agent = exporting.tenure.agents.create("analyst", memory_mb=768, egress=["pip"])
    assert agent.exec(SLIM, user="root").exit_code == 0
    fill(agent, "first")
    return agent


@pytest.fixture(scope="module")
def whole(agent: Agent, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(agent.export(tmp_path_factory.mktemp("whole")).destination)


def leftovers(live: Live) -> list[Path]:
    """What exports and imports leave on the server's side when they do not end."""
    places = [live.settings.snapshots_dir / name for name in (".exported", ".imported")]
    found = [path for place in places if place.is_dir() for path in place.iterdir()]
    indexes = live.settings.home / "exports" / "index"
    return found + ([path for path in indexes.iterdir() if path.suffix != ".index"] if indexes.is_dir() else [])


def test_files_rows_and_objects_come_back_in_another_agent(exporting: Live, agent: Agent, whole: Path) -> None:
    assert agent.show().state == "awake"  # it went on
    fill(agent, "later")
    back = exporting.tenure.agents.import_(whole, name="back")
    assert back.state == "stopped"
    assert words(back) == {"first"}
    assert (back.show().limits, back.show().egress) == (agent.show().limits, agent.show().egress)
    assert back.exec("stat -c %a:%U ~/word; hostname").stdout.split() == ["640:agent", "back"]
    keys = [one.exec("cat /etc/ssh/ssh_host_ed25519_key.pub", user="root").stdout for one in (agent, back)]
    assert keys[0] != keys[1]
    owners = [(exporting.settings.volumes_dir / name / "postgres").stat().st_uid for name in ("analyst", "back")]
    assert owners[0] != owners[1]
    assert words(agent) == {"later"}
    assert leftovers(exporting) == []
    back.delete()


def test_an_increment_brings_back_what_was_then(exporting: Live, agent: Agent, tmp_path: Path) -> None:
    fill(agent, "one")
    first = agent.export(tmp_path / "one.tenure")
    fill(agent, "two")
    second = agent.export(tmp_path / "two.tenure", since=tmp_path / "one.tenure")
    agent.sleep()
    fill(agent, "three")
    third = agent.export(tmp_path / "three.tenure", since=second.id)
    assert (second.base, third.base) == (first.id, second.id)
    sizes = [one.size_bytes or 0 for one in (first, second, third)]
    assert 0 < sizes[1] < sizes[0] / 5
    back = exporting.tenure.agents.import_(tmp_path / "two.tenure", name="of-two")  # its base lies beside
    assert words(back) == {"two"}
    back.delete()
    (tmp_path / "two.tenure").rename(tmp_path / "elsewhere")
    with pytest.raises(ArchiveError, match="missing"):
        exporting.tenure.agents.import_(tmp_path / "three.tenure", name="incomplete")
    given = exporting.tenure.agents.import_(tmp_path / "elsewhere", tmp_path / "three.tenure", name="given")
    assert words(given) == {"three"}
    given.delete()


def test_what_is_there_already_is_refused_before_anything_is_sent_or_made(
    exporting: Live, agent: Agent, whole: Path
) -> None:
    with pytest.raises(AlreadyExists):
        exporting.tenure.agents.import_(whole)
    with pytest.raises(NotFound, match="no finished export"):
        agent.export(whole.parent, since="exp_0000000000000000")
    with pytest.raises(NotFound):
        exporting.tenure.agents("nobody").export(whole.parent)
    assert sorted(whole.parent.iterdir()) == [whole]
    assert leftovers(exporting) == []


def test_a_damaged_archive_leaves_nothing(exporting: Live, whole: Path, tmp_path: Path) -> None:
    data = bytearray(whole.read_bytes())
    (tmp_path / "cut.tenure").write_bytes(data[:-1])
    with pytest.raises(ArchiveError):
        exporting.tenure.agents.import_(tmp_path / "cut.tenure", name="damaged")
    data[len(data) // 2] ^= 1
    (tmp_path / "flipped.tenure").write_bytes(data)
    with pytest.raises(ArchiveError):
        exporting.tenure.agents.import_(tmp_path / "flipped.tenure", name="damaged")
    with pytest.raises(NotFound):
        exporting.tenure.agents.get("damaged")
    assert leftovers(exporting) == []
    assert not (exporting.settings.volumes_dir / "damaged").exists()


def test_with_a_key_the_file_opens_with_that_key_only(exporting: Live, agent: Agent, tmp_path: Path) -> None:
    key, other = new_key(), new_key()
    write_key(tmp_path / "key", key)
    fill(agent, "secret-word")
    made = agent.export(tmp_path / "sealed.tenure", key=tmp_path / "key")
    assert made.key_id == key.id
    assert b"rootfs" not in (tmp_path / "sealed.tenure").read_bytes()
    for wrong in (None, other):
        with pytest.raises(ArchiveError, match="key"):
            exporting.tenure.agents.import_(tmp_path / "sealed.tenure", name="opened", key=wrong)
    opened = exporting.tenure.agents.import_(tmp_path / "sealed.tenure", name="opened", key=key)
    assert words(opened) == {"secret-word"}
    opened.delete()
    for log in exporting.settings.logs_dir.rglob("*"):
        if log.is_file():
            assert key.text.encode() not in log.read_bytes()


async def test_to_s3_and_back(exporting: Live, agent: Agent, s3: S3) -> None:
    fill(agent, "far")
    first = agent.export("s3://copies/hand/one.tenure")
    fill(agent, "farther")
    second = agent.export("s3://copies/hand/", since="s3://copies/hand/one.tenure")
    assert (first.state, second.state, second.base) == ("done", "done", first.id)
    assert second.destination.startswith("s3://copies/hand/analyst-")
    assert len(s3.copies[second.destination.removeprefix("s3://copies/")]) == second.size_bytes
    async with AsyncTenure(exporting.settings) as tenure:
        back = await tenure.agents.import_(second.destination, name="fetched")
        assert (await back.exec("cat ~/word")).stdout == "farther\n"
        await back.delete()
        assert [one.id for one in (await tenure.agents("analyst").exports()).exports][-2:] == [first.id, second.id]
    assert s3.uploads == {}


def test_an_s3_that_fails_is_told_and_leaves_nothing(exporting: Live, agent: Agent, s3: S3) -> None:
    before = dict(s3.copies)
    with pytest.raises(StorageError, match="no such bucket"):
        agent.export("s3://nobucket/one.tenure")
    with pytest.raises(NotFound):
        exporting.tenure.agents.import_("s3://copies/hand/missing.tenure")
    with pytest.raises(InvalidArgument):
        agent.export("s3://copies/../../one")
    failed = agent.exports().exports[-1]
    assert (failed.state, failed.error) == (
        "failed",
        "There is nothing at s3://nobucket/one.tenure, or no such bucket.",
    )
    assert s3.copies == before
    assert leftovers(exporting) == []


def test_secrets_stand_nowhere(exporting: Live, agent: Agent, s3: S3) -> None:
    agent.exports()
    secret = s3.environment["AWS_SECRET_ACCESS_KEY"].encode()
    for log in exporting.settings.logs_dir.rglob("*"):
        if log.is_file():
            assert secret not in log.read_bytes()
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                assert secret not in (entry / "cmdline").read_bytes()
            except OSError:
                continue


def test_a_schedule_keeps_a_copy_elsewhere(exporting: Live, agent: Agent, s3: S3) -> None:
    """What is due when and what goes is proved with a clock in test_export_schedule.py; here once on a real server."""
    key = new_key()
    fill(agent, "kept")
    kept = agent.keep_exporting("s3://copies/kept", every_s=3600, key=key)
    assert (kept.destination, kept.key_id) == ("s3://copies/kept/", key.id)
    done = until(lambda: [one for one in agent.exports().exports if one.scheduled and one.state == "done"])
    assert agent.exports().schedule is not None
    fetched = exporting.tenure.agents.import_(done[0].destination, name="survivor", key=key)
    assert words(fetched) == {"kept"}
    fetched.delete()
    agent.stop_exporting()
    assert agent.exports().schedule is None
    with pytest.raises(NotFound):
        agent.stop_exporting()
    stored = list((exporting.settings.home / "exports" / "keys").iterdir())
    assert [path.stat().st_mode & 0o777 for path in stored] == [0o600]


def until(found: Callable[[], list[wire.Export]]) -> list[wire.Export]:
    deadline = time.monotonic() + WAIT_S
    while not (result := found()):
        assert time.monotonic() < deadline
        time.sleep(0.2)
    return result


# --- the command line ---------------------------------------------------------------------------------------------------------
def tenure(live: Live, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "tenure.cli", *words],
        env={**os.environ, "TENURE_HOME": str(live.settings.home), **environment},
        capture_output=True,
        text=True,
        timeout=WAIT_S,
        check=False,
    )


def test_the_command_line_makes_and_opens_one(exporting: Live, agent: Agent, tmp_path: Path) -> None:
    fill(agent, "typed")
    made = json.loads(tenure(exporting, "agent", "export-key", str(tmp_path / "key"), "--json").stdout)
    assert (tmp_path / "key").stat().st_mode & 0o777 == 0o600
    assert tenure(exporting, "agent", "export-key", str(tmp_path / "key")).returncode == 4  # never overwritten
    done = tenure(exporting, "agent", "export", "analyst", "--to", str(tmp_path), "--key-file", str(tmp_path / "key"))
    assert done.returncode == 0, done.stderr
    file = Path(done.stdout.strip())
    assert file.suffix == SUFFIX
    assert file.stat().st_mode & 0o777 == 0o600
    refused = tenure(exporting, "agent", "import", str(file), "typed")
    assert (refused.returncode, "encrypted with the key" in refused.stderr) == (1, True)
    text = (tmp_path / "key").read_text().strip()
    done = tenure(exporting, "agent", "import", str(file), "typed", "--json", TENURE_EXPORT_KEY=text)
    assert json.loads(done.stdout)["agent"]["name"] == "typed"
    assert words(exporting.tenure.agents("typed")) == {"typed"}
    exporting.tenure.agents("typed").delete()
    listed = tenure(exporting, "agent", "exports", "analyst").stdout
    assert made["key_id"] in listed
    every = tenure(exporting, "agent", "export", "analyst", "--every", "1h", "--to", str(tmp_path))
    assert every.returncode == 2
    assert "S3" in every.stderr


# --- dying in the middle --------------------------------------------------------------------------------------------------
@pytest.fixture
def faulty(exporting: Live) -> Iterator[Callable[[str], None]]:
    """Has the server killed where somebody says; at the end a sound one runs again."""

    def arm(point: str) -> None:
        daemon.down(exporting.settings)
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("TENURE_FAULT", point)
            exporting.up()

    yield arm
    exporting.up()


@pytest.mark.parametrize("point", ["export.copied", "export.piece:20", "import.applied", "import.prepared"])
def test_a_server_killed_in_the_middle_leaves_nothing_that_looks_whole(
    exporting: Live, agent: Agent, whole: Path, tmp_path: Path, faulty: Callable[[str], None], point: str
) -> None:
    name, _, nth = point.partition(":")
    faulty(f"{name}:{nth or 1}:kill")
    with pytest.raises(ServerUnreachable):
        agent.export(tmp_path / "a") if name.startswith("export") else exporting.tenure.agents.import_(
            whole, name="half"
        )
    assert list(tmp_path.iterdir()) == []
    exporting.up()
    assert leftovers(exporting) == []
    with pytest.raises(NotFound):
        exporting.tenure.agents.get("half")
    assert not (exporting.settings.volumes_dir / "half").exists()
    if name.startswith("export"):
        assert agent.exports().exports[-1].state == "failed"
    assert agent.exec("true").exit_code == 0


def test_a_killed_client_leaves_nothing_that_looks_whole(exporting: Live, agent: Agent, tmp_path: Path) -> None:
    words_ = [sys.executable, "-m", "tenure.cli", "agent", "export", "analyst", "--to", str(tmp_path / "a.tenure")]
    client = subprocess.Popen(words_, env={**os.environ, "TENURE_HOME": str(exporting.settings.home)})
    deadline = time.monotonic() + WAIT_S
    while not [path for path in tmp_path.iterdir() if path.stat().st_size > 1024**2]:
        assert client.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
    client.send_signal(signal.SIGKILL)
    client.wait()
    assert not (tmp_path / "a.tenure").exists()
    until(lambda: [one for one in agent.exports().exports[-1:] if one.state == "failed" and not leftovers(exporting)])
    agent.export(tmp_path / "a.tenure")
    assert [path.name for path in tmp_path.iterdir()] == ["a.tenure"]  # what the killed one left is gone, too
    assert not is_running(client.pid)


def test_a_server_that_is_stopped_lets_go_of_an_export(exporting: Live, agent: Agent, tmp_path: Path) -> None:
    pieces = iter(range(1000))

    def stop_soon(_: int) -> None:
        if next(pieces) == 5:
            daemon.down(exporting.settings)

    with pytest.raises(TenureError):
        agent.export(tmp_path / "a.tenure", progress=stop_soon)
    assert list(tmp_path.iterdir()) == []
    exporting.up()
    assert leftovers(exporting) == []
