"""The server process: one per home, found again after `kill -9`, and gone without a trace after `down`.

Real processes and a real control database; offices and worker are fakes (`fixtures/fake_server.py`)."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import stat
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import httpx
import psycopg
import pytest
from hypothesis import given
from hypothesis import strategies as st

from homes import free_port
from tenure import Tenure
from tenure.errors import Conflict, InternalError, SetupError
from tenure.postgres import process
from tenure.postgres.control import control_dsn
from tenure.server import daemon, logs
from tenure.server.home import HomeLock, holder, log_file, prepare_home
from tenure.server.keeper import RESTART_MAX_S, restart_delay_s
from tenure.settings import Settings

ARGV = (sys.executable, str(Path(__file__).parent / "fixtures" / "fake_server.py"))
PATIENCE_S = 30.0

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="the control database runs as a user of its own: needs root")


def eventually(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not holds():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.02)


def alive(pid: int) -> bool:
    """Whether the process runs (a zombie does not)."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in ("Z", "X")
    return False


def postmaster(settings: Settings) -> int | None:
    found = process.find_postmaster(settings.control_dir)
    if found is None:
        return None
    with found:
        return found.pid


def workers(settings: Settings) -> list[int]:
    health = daemon.status(settings).health
    return [worker.pid for worker in health.workers] if health else []


def make_home() -> Settings:
    home = Path(tempfile.mkdtemp(prefix="tn-"))
    settings = Settings(home=home, port=free_port())
    settings.pool_dir.mkdir()
    (settings.pool_dir / ".plain-directory").touch()
    return settings


@pytest.fixture(scope="module")
def kept_home() -> Iterator[Settings]:
    """One home for the tests of this module: making its database takes a second."""
    settings = make_home()
    yield settings
    daemon.down(settings, ARGV)
    shutil.rmtree(settings.home)


@pytest.fixture
def home(kept_home: Settings) -> Iterator[Settings]:
    """The module's home, with nothing running before and after."""
    for notes in ("slept", "released"):
        (kept_home.home / notes).unlink(missing_ok=True)
    yield kept_home
    daemon.down(kept_home, ARGV)


# --- up and down -------------------------------------------------------------------------------------------------------
@needs_root
def test_up_answers_and_down_leaves_nothing_running(home: Settings) -> None:
    assert not daemon.status(home).running
    up = daemon.up(home, argv=ARGV)
    assert up.health is not None
    assert up.health.pid == up.pid == holder(home)
    assert up.health.version
    eventually(lambda: bool(workers(home)))
    (worker,) = workers(home)
    database = postmaster(home)
    assert database is not None

    assert daemon.down(home, ARGV)
    assert not daemon.is_running(home)
    assert not alive(up.pid or 0)
    assert not alive(worker)
    assert not alive(database)
    assert not home.api_socket.exists()
    assert (home.home / "slept").read_text() == "all\n"
    with socket.socket() as client:
        assert client.connect_ex(("127.0.0.1", home.port)) != 0
    assert not daemon.down(home, ARGV)


@needs_root
def test_up_twice_is_one_server(home: Settings) -> None:
    first = daemon.up(home, argv=ARGV)
    second = daemon.up(home, argv=ARGV)
    assert first.pid == second.pid


@needs_root
def test_the_api_answers_on_socket_and_loopback_to_the_token_in_the_home(home: Settings) -> None:
    daemon.up(home, argv=ARGV)
    token = home.token_file.read_text().strip()
    headers = {"Authorization": f"Bearer {token}"}
    over_tcp = httpx.get(f"http://127.0.0.1:{home.port}/v1/agents", headers=headers)
    with httpx.Client(transport=httpx.HTTPTransport(uds=str(home.api_socket)), headers=headers) as client:
        over_unix = client.get("http://tenure/v1/agents")
    assert over_tcp.json() == over_unix.json() == {"agents": []}
    assert httpx.get(f"http://127.0.0.1:{home.port}/v1/agents").status_code == 401


@needs_root
def test_secrets_and_sockets_belong_to_the_owner_alone(home: Settings) -> None:
    daemon.up(home, argv=ARGV)
    for path, mode in (
        (home.token_file, 0o600),
        (home.home / "worker-token", 0o600),
        (home.api_socket, 0o600),
        (home.logs_dir, 0o700),
        (home.home, 0o711),
        (home.run_dir, 0o711),
    ):
        assert stat.S_IMODE(path.stat().st_mode) == mode, path


# --- killed --------------------------------------------------------------------------------------------------------------
@needs_root
def test_kill_9_leaves_the_database_running_and_the_next_server_adopts_it(home: Settings) -> None:
    first = daemon.up(home, argv=ARGV)
    assert first.pid is not None
    eventually(lambda: bool(workers(home)))
    (worker,) = workers(home)
    database = postmaster(home)
    with psycopg.connect(control_dsn(home), autocommit=True) as connection:
        os.kill(first.pid, signal.SIGKILL)
        eventually(lambda: not alive(worker))  # the worker never outlives its server
        assert connection.execute("select 1").fetchone() == (1,)  # a session of before goes on
        eventually(lambda: not daemon.is_running(home))  # it holds the home until the last of its threads is gone

        second = daemon.up(home, argv=ARGV)
        assert second.pid != first.pid
        assert postmaster(home) == database
        assert connection.execute("select 1").fetchone() == (1,)
    assert not (home.home / "slept").exists()  # nobody was put to sleep by the killing


@needs_root
def test_down_stops_what_a_killed_server_left(home: Settings) -> None:
    up = daemon.up(home, argv=ARGV)
    assert up.pid is not None
    os.kill(up.pid, signal.SIGKILL)
    eventually(lambda: not daemon.is_running(home))
    database = postmaster(home)
    assert database is not None
    assert daemon.down(home, ARGV)
    assert not alive(database)
    assert (home.home / "slept").read_text() == "all\n"


@needs_root
def test_a_dead_worker_is_replaced_and_its_claims_released(home: Settings) -> None:
    daemon.up(home, argv=ARGV)
    eventually(lambda: bool(workers(home)))
    (first,) = workers(home)
    os.kill(first, signal.SIGKILL)
    eventually(lambda: workers(home) not in ([], [first]))
    assert (home.home / "released").read_text().split() == [str(first)]
    assert "the worker works" in log_file(home).read_text()


# --- what keeps it from starting -----------------------------------------------------------------------------------------
@needs_root
def test_a_port_in_use_is_said_with_a_hint(home: Settings) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", home.port))
        taken.listen()
        with pytest.raises(SetupError, match=f"127.0.0.1:{home.port}") as refused:
            daemon.up(home, argv=ARGV)
    assert "TENURE_PORT" in refused.value.hint
    assert not daemon.is_running(home)


@needs_root
def test_a_server_that_dies_at_start_shows_its_last_words(home: Settings) -> None:
    argv = (sys.executable, "-c", "import sys; sys.exit('its last words')")
    with pytest.raises(InternalError, match="exit code 1") as refused:
        daemon.up(home, argv=argv)
    assert "its last words" in refused.value.message


@needs_root
def test_a_taken_ssh_port_is_told_and_keeps_nothing_else_from_working(home: Settings) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        health = daemon.up(replace(home, ssh_port=port), argv=ARGV).health
    assert health is not None
    assert health.ssh is not None
    assert f"Cannot listen on 127.0.0.1:{port}" in health.ssh
    assert "TENURE_SSH_PORT" in health.ssh
    with Tenure(home) as tenure:
        gateway = tenure.ssh_gateway()
    assert (gateway.enabled, gateway.problem) == (False, health.ssh)


def test_a_missing_pool_is_not_replaced_by_an_empty_one(tmp_path: Path) -> None:
    settings = Settings(home=Path(tempfile.mkdtemp(prefix="tn-")), port=free_port())
    try:
        with pytest.raises(SetupError, match="pool") as refused:
            daemon.up(settings, argv=ARGV)
        assert "tenure setup" in refused.value.hint
    finally:
        shutil.rmtree(settings.home)


def test_a_home_that_is_a_file_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(SetupError, match="not a directory"):
        daemon.up(Settings(home=tmp_path / "file"), argv=ARGV)


# --- the lock ------------------------------------------------------------------------------------------------------------
def test_two_servers_never_hold_one_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tenure.server.home.LOCK_WAIT_S", 0.1)
    settings = Settings(home=tmp_path)
    prepare_home(settings)
    assert holder(settings) is None
    with HomeLock(settings):
        assert holder(settings) == os.getpid()
        with pytest.raises(Conflict, match=str(os.getpid())), HomeLock(settings):
            pass
    assert holder(settings) is None
    with HomeLock(settings):
        pass


def test_the_pid_of_a_dead_server_means_nothing(tmp_path: Path) -> None:
    settings = Settings(home=tmp_path)
    prepare_home(settings)
    settings.pid_file.write_text("1\n")  # a process that lives, and is no server
    assert holder(settings) is None
    assert not daemon.down(settings, ARGV)


# --- small parts -----------------------------------------------------------------------------------------------------------
@given(st.integers(min_value=1, max_value=10_000))
def test_a_worker_that_keeps_failing_is_started_ever_more_rarely(failures: int) -> None:
    assert 0 < restart_delay_s(failures) <= restart_delay_s(failures + 1) <= RESTART_MAX_S


def test_the_tail_of_a_log_is_its_last_lines_of_this_start(tmp_path: Path) -> None:
    file = tmp_path / "log"
    file.write_text("old\n" + "".join(f"line {n}\n" for n in range(100)))
    assert logs.tail(file, since_byte=4, lines_max=2) == "line 98\nline 99"
    assert "old" not in logs.tail(file, since_byte=4, lines_max=1000)
    assert logs.tail(tmp_path / "none") == ""
