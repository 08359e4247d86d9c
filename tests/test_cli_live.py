"""The command line as people use it, on a real server: terminals, pipes, signals, OpenSSH's own tools, full disks."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from fixtures.cli import Cli
from fixtures.live import Live
from fixtures.terminal import Terminal
from homes import free_port
from tenure.client import Agent
from tenure.settings import Settings

PATIENCE_S = 60.0
NOBODY = 65534
PIPED_BYTES = 32 * 1024**2
"""More than all the buffers on the way, in both directions."""
MEMORY_KIB_MAX = 96 * 1024
"""Of a command that carries 200 MB."""
TENURE = (sys.executable, "-m", "tenure.cli")
PARKING_PLAYBOOK = """
name: parks
defaults: {retry: 0}
steps:
  - {id: fine, run: echo fine}
  - {id: bad, needs: fine, run: "echo what went wrong; exit 3"}
  - {id: after, needs: bad, run: echo after}
"""


class Shell:
    """Runs `tenure` against `live`, as scripts do."""

    def __init__(self, settings: Settings) -> None:
        self.env = {**Cli(settings.home).environment(), "TENURE_PORT": str(settings.port)}

    def __call__(self, *words: str, stdin: bytes | None = None) -> subprocess.CompletedProcess[bytes]:
        given = {"stdin": subprocess.DEVNULL} if stdin is None else {"input": stdin}
        done = subprocess.run(
            [*TENURE, *words], env=self.env, capture_output=True, timeout=PATIENCE_S, check=False, **given
        )
        assert b"Traceback" not in done.stdout + done.stderr
        return done

    def start(self, *words: str, **options: object) -> subprocess.Popen[bytes]:
        return subprocess.Popen([*TENURE, *words], env=self.env, **options)  # type: ignore[call-overload]

    def terminal(self, *words: str) -> Terminal:
        return Terminal([*TENURE, *words], self.env)


@pytest.fixture(scope="module")
def tenure(live: Live) -> Shell:
    return Shell(live.settings)


@pytest.fixture(scope="module")
def agent(live: Live) -> Agent:
    return live.agent("cli", disk_gb=2)


def eventually(holds: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not holds():
        assert time.monotonic() < deadline, f"after {PATIENCE_S:g} s still not: {what}"
        time.sleep(0.1)


def runs_in(agent: Agent, text: str) -> bool:
    return agent.exec(["pgrep", "-fx", text]).ok


# --- a terminal ----------------------------------------------------------------------------------------------------------
def test_a_shell_is_a_terminal_like_any_other(tenure: Shell, agent: Agent) -> None:
    with tenure.terminal("shell", agent.name) as terminal:
        terminal.expect("$ ")
        terminal.type("echo $TERM-$PWD-$(tput colors)\n")
        terminal.expect("xterm-256color-/home/agent-256\r\n")
        terminal.resize(41, 133)
        terminal.type("stty size\n")
        terminal.expect("41 133\r\n")
        terminal.type("sleep 2000\n")
        eventually(lambda: runs_in(agent, "sleep 2000"), "the command runs")
        terminal.type("\x03")
        terminal.type("echo code $?\n")
        terminal.expect("code 130\r\n")
        terminal.type("seq 500 | less; echo page''d\n")
        terminal.expect("\x1b[?1049h")  # less takes the whole screen …
        terminal.type("q")
        terminal.expect("paged\r\n")  # … and gives it back
        terminal.type("(exit 7)\n\x04")
        assert terminal.wait() == 7
        assert terminal.modes == terminal.modes_before


def test_psql_on_a_terminal_survives_an_interrupted_query(tenure: Shell, agent: Agent) -> None:
    with tenure.terminal("sql", agent.name) as terminal:
        terminal.expect("agent=> ")
        terminal.type("select pg_sleep(1000);\n")
        eventually(lambda: sleeping_queries(agent) == 1, "the query runs")
        terminal.type("\x03")
        terminal.expect("canceling statement")
        terminal.type("select 6 * 7 as answer;\n")
        terminal.expect("42\r\n")
        terminal.type("\\q\n")
        assert terminal.wait() == 0


def test_ctrl_c_ends_a_command_and_its_process_in_the_office(tenure: Shell, agent: Agent) -> None:
    with tenure.terminal("exec", agent.name, "--", "sleep", "2001") as terminal:
        eventually(lambda: runs_in(agent, "sleep 2001"), "the command runs")
        terminal.type("\x03")
        assert terminal.wait() == 130
        assert "error" not in terminal.shown
    eventually(lambda: not runs_in(agent, "sleep 2001"), "the command is ended")


def test_a_terminal_that_hangs_up_ends_its_shell(tenure: Shell, agent: Agent) -> None:
    with tenure.terminal("shell", agent.name) as terminal:
        terminal.expect("$ ")
        terminal.type("exec sleep 2002\n")
        eventually(lambda: runs_in(agent, "sleep 2002"), "the command runs")
        terminal.send(signal.SIGHUP)
        terminal.wait()
    eventually(lambda: not runs_in(agent, "sleep 2002"), "the shell is ended")


def test_a_question_that_is_interrupted_deletes_nothing(tenure: Shell, agent: Agent) -> None:
    with tenure.terminal("agent", "delete", agent.name) as terminal:
        terminal.expect("[y/N]: ")
        time.sleep(0.5)  # nobody is as quick as a test: between the question and its reading Python defers a signal
        terminal.type("\x03")
        assert terminal.wait() == 1
        assert "Nothing was deleted." in terminal.shown
    assert agent.show().name == agent.name


# --- pipes -----------------------------------------------------------------------------------------------------------------
def test_every_byte_comes_back_through_a_pipe(tenure: Shell, agent: Agent) -> None:
    data = os.urandom(PIPED_BYTES)
    done = tenure("exec", agent.name, "--", "cat", stdin=data)
    assert (done.returncode, done.stdout == data, done.stderr) == (0, True, b"")


def test_nobody_waits_for_ever_for_a_command_that_reads_nothing(tenure: Shell, agent: Agent) -> None:
    data = bytes(PIPED_BYTES)
    timed = tenure("exec", agent.name, "--timeout", "2", "--", "sleep", "600", stdin=data)
    assert (timed.returncode, b"ended after 2 s" in timed.stderr) == (8, True)
    process = tenure.start("exec", agent.name, "--", "sleep", "601", stdin=subprocess.PIPE)
    feeder = threading.Thread(target=feed, args=(process, data), daemon=True)
    feeder.start()
    eventually(lambda: runs_in(agent, "sleep 601"), "the command runs")

    def interrupted() -> bool:  # the first one waits behind the input, the second one ends the wait
        process.send_signal(signal.SIGINT)
        return process.poll() is not None

    eventually(interrupted, "the command is given up")
    assert process.returncode == 130
    feeder.join(PATIENCE_S)


def feed(process: subprocess.Popen[bytes], data: bytes) -> None:
    assert process.stdin is not None
    with contextlib.suppress(BrokenPipeError):
        process.stdin.write(data)
    with contextlib.suppress(BrokenPipeError):
        process.stdin.close()


def measured(process: subprocess.Popen[bytes]) -> tuple[bytes, int, int]:
    """(first line, bytes of stdout, most memory in KiB that the process had while it wrote them)."""
    assert process.stdout is not None
    head, seen, memory_kib = b"", 0, 0
    while piece := process.stdout.read(4 * 1024**2):
        head, seen = head or piece.split(b"\n", 1)[0], seen + len(piece)
        with contextlib.suppress(ProcessLookupError, FileNotFoundError):
            # Not rusage: that counts what this process had when it forked.
            found = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{process.pid}/status").read_text())
            memory_kib = max(memory_kib, int(found[1]) if found else 0)
    process.stdout.close()
    assert memory_kib > 0
    return head, seen, memory_kib


def test_a_large_output_is_whole_and_costs_no_memory(tenure: Shell, agent: Agent) -> None:
    size_bytes = 192 * 1024**2
    process = tenure.start("exec", agent.name, "--", "head", "-c", str(size_bytes), "/dev/zero", stdout=subprocess.PIPE)
    _, seen, memory_kib = measured(process)
    assert (process.wait(), seen) == (0, size_bytes)
    assert memory_kib < MEMORY_KIB_MAX


def test_rows_as_csv_are_streamed(tenure: Shell, agent: Agent) -> None:
    query = "select i, repeat('x', 1000) as x from generate_series(100000, 299999) i"
    process = tenure.start("sql", agent.name, query, "--csv", stdout=subprocess.PIPE)
    head, seen, memory_kib = measured(process)
    assert (process.wait(), head, seen) == (0, b"i,x", len("i,x\n") + 200_000 * (6 + 1 + 1000 + 1))
    assert memory_kib < MEMORY_KIB_MAX


def test_values_as_csv_are_postgresqls_own(tenure: Shell, agent: Agent) -> None:
    done = tenure("sql", agent.name, "select 1.50::numeric n, array[1,2] a, null x, 'a,\"b' t, true b", "--csv")
    assert done.stdout == b'n,a,x,t,b\n1.50,"{1,2}",,"a,""b",t\n'
    wrong = tenure("sql", agent.name, "select * from nowhere", "--csv")
    assert (wrong.returncode, wrong.stdout) == (1, b"")
    assert b'error: relation "nowhere" does not exist' in wrong.stderr


def test_rows_that_break_off_are_an_error(tenure: Shell, agent: Agent) -> None:
    done = tenure("sql", agent.name, "select 1 / (100000 - i) from generate_series(1, 200000) i", "--csv")
    assert done.returncode == 1
    assert b"broke off" in done.stderr


def sleeping_queries(agent: Agent) -> int:
    found = agent.sql(
        "select count(*) from pg_stat_activity"
        " where query like '%pg_sleep(1000)%' and state = 'active' and pid <> pg_backend_pid()"
    )
    return int(found.rows[0][0])


@pytest.mark.parametrize("flags", [(), ("--csv",)], ids=["table", "csv"])
def test_an_interrupted_statement_is_cancelled_in_the_database(
    tenure: Shell, agent: Agent, flags: tuple[str, ...]
) -> None:
    process = tenure.start("sql", agent.name, "select pg_sleep(1000)", *flags)
    eventually(lambda: sleeping_queries(agent) == 1, "the statement runs")
    process.send_signal(signal.SIGINT)
    assert process.wait(PATIENCE_S) == 130
    eventually(lambda: sleeping_queries(agent) == 0, "the statement is cancelled")


# --- files -----------------------------------------------------------------------------------------------------------------
def test_a_directory_comes_back_as_it_was(tenure: Shell, agent: Agent, tmp_path: Path) -> None:
    there, back = tmp_path / "täst dir", tmp_path / "back"
    (there / "empty").mkdir(parents=True)
    (there / "a -x").write_bytes(os.urandom(100_000))
    (there / "tool").write_text("#!/bin/sh\n")
    (there / "tool").chmod(0o755)
    (there / "link").symlink_to("tool")
    assert tenure("cp", str(there), f"{agent.name}:").returncode == 0
    assert tenure("cp", f"{agent.name}:{there.name}", str(back)).returncode == 0
    assert (back / "a -x").read_bytes() == (there / "a -x").read_bytes()
    assert (back / "tool").stat().st_mode & 0o777 == 0o755
    assert (back / "link").readlink() == Path("tool")
    assert (back / "empty").is_dir()


@pytest.mark.parametrize(
    ("source", "target", "code", "said"),
    [
        ("AGENT:/nowhere", "here", 3, "'/nowhere'"),
        ("AGENT:/etc/shadow", "here", 2, "--user root"),
        ("/etc/hostname", "AGENT:/root/x", 2, "--user root"),
        ("/etc/hostname", "AGENT:/nowhere/x", 3, "'/nowhere'"),
        ("/nowhere", "AGENT:x", 3, "/nowhere"),
        ("-", "AGENT:x", 2, "tee"),
    ],
)
def test_what_cannot_be_copied_is_said(
    tenure: Shell, agent: Agent, tmp_path: Path, source: str, target: str, code: int, said: str
) -> None:
    words = [word.replace("AGENT", agent.name) for word in (source, target)]
    done = subprocess.run([*TENURE, "cp", *words], env=tenure.env, cwd=tmp_path, capture_output=True, check=False)
    assert (done.returncode, done.stdout, list(tmp_path.iterdir())) == (code, b"", [])
    assert done.stderr.startswith(b"error: ")
    assert said in done.stderr.decode()


def test_a_full_disk_is_a_clear_error_and_can_be_emptied(live: Live, tenure: Shell, tmp_path: Path) -> None:
    agent = live.agent("full", disk_gb=1)
    big = tmp_path / "more"
    big.write_bytes(os.urandom(32 * 1024**2))

    def filled() -> bool:  # what a write had reserved and did not use is free again a moment later
        agent.exec("head -c 2G /dev/zero >> big; sync", timeout_s=300)
        usage = agent.show().usage
        return usage is not None and (usage.disk_bytes or 0) > 1024**3 - big.stat().st_size // 4

    eventually(filled, "the disk is full")
    for words in (("cp", str(big), f"{agent.name}:"), ("objects", "put", agent.name, str(big), "b/more")):
        done = tenure(*words)
        assert done.returncode == 9, done.stderr
        assert b"disk is full" in done.stderr
        assert b"hint: " in done.stderr
    assert tenure("exec", agent.name, "--", "rm", "big").returncode == 0
    assert tenure("objects", "put", agent.name, str(big), "b/more").returncode == 0
    agent.delete()


# --- OpenSSH's own tools -------------------------------------------------------------------------------------------------
@pytest.fixture
def ssh_config(live: Live, tmp_path: Path) -> Path:
    """What docs tell a user to write into ~/.ssh/config."""
    config = tmp_path / "ssh_config"
    proxy = shlex.join([*TENURE, "--home", str(live.settings.home), "ssh-proxy", "%h"])
    config.write_text(
        f"Host *\n  User agent\n  ProxyCommand {proxy}\n  IdentityFile {live.settings.keys_dir}/id_ed25519\n"
        "  StrictHostKeyChecking no\n  UserKnownHostsFile /dev/null\n  LogLevel ERROR\n"
    )
    return config


@contextlib.contextmanager
def forwarded(tenure: Shell, agent: Agent, target: str) -> Iterator[int]:
    """A port here that `ssh -L` carries to `target` in the office."""
    port = free_port()
    process = tenure.start("ssh", agent.name, "--", "-N", "-L", f"127.0.0.1:{port}:{target}", stdin=subprocess.DEVNULL)
    try:
        eventually(lambda: _listens(port), "ssh listens")
        yield port
    finally:
        process.terminate()
        process.wait(PATIENCE_S)


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def test_ssh_forwards_a_port_into_the_office(tenure: Shell, agent: Agent) -> None:
    agent.objects.put("forwarded", "x", b"y")
    with forwarded(tenure, agent, "s3:9000") as port:
        answer = urllib.request.urlopen(f"http://127.0.0.1:{port}/forwarded/x", timeout=PATIENCE_S)
        assert answer.read() == b"y"


def test_ssh_ends_with_the_commands_exit_code(tenure: Shell, agent: Agent) -> None:
    done = tenure("ssh", agent.name, "--", "whoami; exit 9")
    assert (done.returncode, done.stdout) == (9, b"agent\n")
    unknown = tenure("ssh", "no-such-agent", "--", "true")
    assert unknown.returncode == 255
    assert b"no agent named 'no-such-agent'" in unknown.stderr


def test_scp_and_git_work_through_the_proxy_command(agent: Agent, ssh_config: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(os.urandom(1024**2))
    for words in (["file", f"{agent.name}:copied"], [f"{agent.name}:copied", "back"]):
        subprocess.run(["scp", "-q", "-F", ssh_config, *words], cwd=tmp_path, check=True, timeout=PATIENCE_S)
    assert (tmp_path / "back").read_bytes() == (tmp_path / "file").read_bytes()
    git = "git -c user.name=a -c user.email=a@b"
    made = agent.exec(f"git init -q repo && cd repo && echo hello > f && git add f && {git} commit -q -m one")
    assert made.ok, made.stderr
    env = {**os.environ, "GIT_SSH_COMMAND": f"ssh -F {ssh_config}"}
    clone = ["git", "clone", "-q", f"{agent.name}:repo", "clone"]
    subprocess.run(clone, cwd=tmp_path, env=env, check=True, timeout=PATIENCE_S)
    assert (tmp_path / "clone" / "f").read_text() == "hello\n"


@pytest.mark.skipif(shutil.which("rsync") is None, reason="this machine has no rsync")
def test_rsync_works_through_the_proxy_command(agent: Agent, ssh_config: Path, tmp_path: Path) -> None:
    (tmp_path / "tree" / "sub").mkdir(parents=True)
    (tmp_path / "tree" / "sub" / "f").write_text("hello\n")
    words = ["rsync", "-a", "-e", f"ssh -F {ssh_config}"]
    subprocess.run([*words, f"{tmp_path}/tree", f"{agent.name}:"], check=True, timeout=PATIENCE_S)
    assert agent.exec("cat tree/sub/f").stdout == "hello\n"


# --- runs ------------------------------------------------------------------------------------------------------------------
def test_a_parked_run_says_why_and_goes_on_when_it_is_answered(tenure: Shell, agent: Agent, tmp_path: Path) -> None:
    playbook = tmp_path / "parks.yaml"
    playbook.write_text(PARKING_PLAYBOOK)
    followed = tenure("run", agent.name, "try it", "--playbook", str(playbook), "--follow")
    assert followed.returncode == 11
    run_id = followed.stdout.decode().split(":")[0]
    for part in ("bad: failed", "what went wrong", "rung 8 (ask a person)", "parked", f"tenure runs resume {run_id}"):
        assert part in followed.stdout.decode()
    assert "what went wrong" in tenure("runs", "show", run_id).stdout.decode()
    step = json.loads(tenure("runs", "show", run_id, "--step", "bad", "--json").stdout)
    assert [(one["state"], one["exit_code"], one["output"]) for one in step["attempts"]] == [
        ("failed", 3, "what went wrong")
    ]
    assert run_id in tenure("inbox").stdout.decode()
    resumed = tenure("runs", "resume", run_id, "--answer", "skip", "--follow")
    assert resumed.returncode == 0
    states = [step["state"] for step in json.loads(tenure("runs", "show", run_id, "--json").stdout)["steps"]]
    assert states == ["succeeded", "skipped", "succeeded"]


def test_ctrl_c_leaves_a_followed_run_and_says_that_it_goes_on(tenure: Shell, agent: Agent, tmp_path: Path) -> None:
    playbook = tmp_path / "long.yaml"
    playbook.write_text("name: long\nsteps: [{id: one, run: sleep 2003}]\n")
    with tenure.terminal("run", agent.name, "long", "-p", str(playbook), "--follow") as terminal:
        eventually(lambda: runs_in(agent, "sleep 2003"), "the step runs")
        terminal.expect("one")
        terminal.type("\x03")
        assert terminal.wait() == 130
        assert "The run goes on" in terminal.shown
    assert runs_in(agent, "sleep 2003")
    run_id = json.loads(tenure("runs", "list", "--agent", agent.name, "--json").stdout)["runs"][0]["id"]
    assert tenure("runs", "cancel", run_id).returncode == 0
    assert tenure("runs", "follow", run_id).returncode == 12
    eventually(lambda: not runs_in(agent, "sleep 2003"), "the step is ended")


# --- the server --------------------------------------------------------------------------------------------------------------
def test_a_log_is_followed_while_the_office_sleeps_and_wakes(live: Live, tenure: Shell) -> None:
    agent = live.agent("log")
    process = tenure.start("logs", agent.name, "--follow", stdout=subprocess.PIPE)
    assert process.stdout is not None
    lines = iter(process.stdout.readline, b"")
    assert any(b"awake" in line for line in lines)
    assert tenure("sleep", agent.name).stdout.decode() == f"{agent.name} is stopped.\n"
    assert any(b"stopped" in line for line in lines)
    process.send_signal(signal.SIGINT)
    assert process.wait(PATIENCE_S) == 130
    process.stdout.close()
    agent.delete()


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["status"], 5),
        (["exec", "a", "--", "ls"], 5),
        (["logs", "--server"], 5),
        (["ssh", "a"], 5),
        (["up"], 7),
        (["down"], 7),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, list) else None,
)
def test_another_user_is_told_to_be_the_owner(tenure: Shell, agent: Agent, words: list[str], code: int) -> None:
    # The modules are loaded as root: another user may not be able to read where Python is installed.
    script = (
        "import os, sys, tenure.cli, tenure.client.attach, tenure.server.daemon, tenure.cli.commands.secure_shell\n"
        "assert tenure.cli.main(['status']) == 0\n"
        f"os.setgroups([]); os.setgid({NOBODY}); os.setuid({NOBODY})\n"
        "sys.exit(tenure.cli.main(sys.argv[1:]))\n"
    )
    given = [agent.name if word == "a" else word for word in words]
    argv = [sys.executable, "-c", script, *given]
    done = subprocess.run(argv, env=tenure.env, capture_output=True, timeout=PATIENCE_S, check=False)
    assert done.returncode == code, done.stderr
    assert b"This user may not" in done.stderr
    assert b"sudo" in done.stderr
    assert b"bug" not in done.stderr


def test_a_server_in_the_foreground_is_stopped_by_ctrl_c_at_any_time(new_settings: Callable[[], Settings]) -> None:
    tenure = Shell(new_settings())
    with tenure.terminal("up", "--foreground") as terminal:
        terminal.type("\x03")
        assert terminal.wait() in (0, 130, -signal.SIGINT)
        assert "Traceback" not in terminal.shown
    with tenure.terminal("up", "--foreground") as terminal:
        terminal.expect("ready: ")
        assert json.loads(tenure("status", "--json").stdout)["state"] == "running"
        terminal.type("\x03")
        assert terminal.wait() == 0
        assert "Traceback" not in terminal.shown
    assert tenure("status").returncode == 6
    assert tenure("down").stdout == b"Nothing was running.\n"
