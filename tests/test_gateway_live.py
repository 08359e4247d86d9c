"""OpenSSH's own programs reach a real office through the gateway, and a browser what a program in it serves; both wake it."""

from __future__ import annotations

import hashlib
import os
import secrets
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import httpx
import pytest
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect as websocket

from fixtures.gateway import PATIENCE_S, OpenSsh, open_ssh
from fixtures.live import Live
from fixtures.terminal import Terminal
from homes import free_port
from tenure.client import Agent

SIZE_BYTES = 100 * 1000 * 1000


@pytest.fixture(scope="module")
def analyst(live: Live) -> Agent:
    return live.agent("analyst", memory_mb=1024)


@pytest.fixture(scope="module")
def ssh(live: Live, analyst: Agent, tmp_path_factory: pytest.TempPathFactory) -> OpenSsh:
    return open_ssh(live, tmp_path_factory.mktemp("ssh"), [analyst.name, "nobody-there"])


@pytest.fixture
def host(analyst: Agent) -> str:
    return f"{analyst.name}.tenure"


# --- commands ----------------------------------------------------------------------------------------------------------------
def test_a_command_runs_as_the_agent_in_an_office_that_slept(analyst: Agent, ssh: OpenSsh, host: str) -> None:
    analyst.sleep()
    done = ssh.run("ssh", host, "id -un; hostname; pwd; echo wrong >&2; exit 37")
    assert (done.returncode, done.stderr) == (37, b"wrong\n")
    assert done.stdout.decode().split() == ["agent", analyst.name, "/home/agent"]


def test_a_command_ended_by_a_signal_says_so_by_its_code(ssh: OpenSsh, host: str) -> None:
    assert ssh.run("ssh", host, "kill -TERM $$").returncode == 128 + 15
    assert ssh.run("ssh", host, "no-such-program").returncode == 127


def test_language_and_terminal_arrive_and_nothing_that_says_where_programs_are(ssh: OpenSsh, host: str) -> None:
    sent = ("-o", "SetEnv=LANG=de_DE.UTF-8 LC_TIME=C LD_PRELOAD=/evil.so BASH_ENV=/evil PATH=/evil")
    done = ssh.run("ssh", *sent, host, "env")
    assert b"LANG=de_DE.UTF-8" in done.stdout
    assert b"LC_TIME=C" in done.stdout
    assert b"evil" not in done.stdout
    assert b"TENURE_AGENT=" in done.stdout
    assert b"TERM=" not in done.stdout


def test_all_bytes_arrive_both_ways(ssh: OpenSsh, host: str, tmp_path: Path) -> None:
    data = os.urandom(1000 * 1000) * (SIZE_BYTES // 1000 // 1000)
    there = ssh.run("ssh", host, "tee copy | sha256sum; wc -c < copy", stdin=data)
    assert there.stdout.decode().split() == [hashlib.sha256(data).hexdigest(), "-", str(SIZE_BYTES)]
    back = ssh.run("ssh", host, "cat copy; rm copy")
    assert (back.returncode, back.stderr) == (0, b"")
    assert hashlib.sha256(back.stdout).digest() == hashlib.sha256(data).digest()


def test_the_end_of_input_reaches_the_command(ssh: OpenSsh, host: str) -> None:
    assert ssh.run("ssh", host, "wc -c", stdin=b"abc").stdout.strip() == b"3"
    assert ssh.run("ssh", host, stdin=b"echo $((6 * 7)); exit 5\n").returncode == 5


WRITER = """
import os, sys
block, said = bytes(65536), os.open("written", os.O_CREAT | os.O_WRONLY)
for number in range(1, 1001):
    view = memoryview(block)
    while view:
        view = view[os.write(1, view):]
    os.pwrite(said, b"%8d" % number, 0)
"""


def test_a_slow_reader_slows_the_command(analyst: Agent, ssh: OpenSsh, host: str) -> None:
    analyst.exec(["tee", "writer.py"], stdin=WRITER)
    process = ssh.start("ssh", host, "python3 writer.py")
    assert process.stdout is not None
    assert process.stdout.read(1) == b"\0"
    looks: list[int] = []
    deadline = time.monotonic() + PATIENCE_S
    while len(looks) < 5 or len(set(looks[-5:])) > 1:  # until nothing moves any more
        assert time.monotonic() < deadline
        looks.append(int(analyst.exec("cat written || echo 0").stdout))
        time.sleep(0.3)
    assert 0 < looks[-1] * 65536 < 16 * 1024 * 1024  # what windows and sockets between the two hold
    assert len(process.stdout.read()) == 1000 * 65536 - 1
    assert process.wait(PATIENCE_S) == 0


def test_a_client_that_goes_away_ends_its_command(ssh: OpenSsh, host: str) -> None:
    mark = secrets.token_hex(4)
    process = ssh.start("ssh", host, f"echo on; exec -a {mark} sleep 600")
    assert process.stdout is not None
    assert process.stdout.readline() == b"on\n"
    process.kill()
    process.communicate()
    deadline = time.monotonic() + PATIENCE_S
    while ssh.run("ssh", host, f"pgrep -f '^{mark}'").returncode == 0:
        assert time.monotonic() < deadline, "it still runs"


# --- terminals ---------------------------------------------------------------------------------------------------------------
def test_a_login_shell_has_a_terminal_of_the_clients_kind_and_size(ssh: OpenSsh, host: str) -> None:
    env = {**os.environ, "TERM": "xterm-256color"}
    with Terminal(ssh.words("ssh", host), env=env, rows=31, cols=97) as terminal:
        terminal.type("tty; stty size; echo $TERM; shopt -q login_shell && echo a-login-shell\r")
        terminal.expect("/dev/pts/")
        terminal.expect("31 97")
        terminal.expect("xterm-256color")
        terminal.expect("a-login-shell")
        terminal.resize(20, 60)
        terminal.type("while ! stty size | grep '20 60'; do sleep 0.1; done\r")
        terminal.expect("20 60\r\n")
        terminal.type("sh -c \"echo be''gun; exec cat\"\r")
        terminal.expect("begun")
        terminal.type("\x03")
        terminal.type("echo in''terrupted $?\r")
        terminal.expect("interrupted 130")
        terminal.type("exit 3\r")
        assert terminal.wait() == 3


# --- files -------------------------------------------------------------------------------------------------------------------
def test_scp_both_protocols_sftp_rsync_and_git(ssh: OpenSsh, host: str, tmp_path: Path) -> None:
    local = tmp_path / "tree"
    (local / "deep").mkdir(parents=True)
    (local / "deep" / "random").write_bytes(os.urandom(3_000_000))
    (local / "ümlaut with space").write_text("x")

    def same(other: Path) -> bool:
        return subprocess.run(["diff", "-r", local, other], check=False).returncode == 0

    for number, flags in enumerate((["-r"], ["-r", "-O"])):
        assert ssh.run("scp", *flags, str(local), f"{host}:scp{number}").returncode == 0
        assert ssh.run("scp", *flags, f"{host}:scp{number}", str(tmp_path / f"scp{number}")).returncode == 0
        assert same(tmp_path / f"scp{number}")
    batch = f"mkdir by-sftp\nput -r {local} by-sftp/tree\nget -r by-sftp/tree {tmp_path}/sftp\nls -l by-sftp\n"
    done = ssh.run("sftp", "-b", "-", host, stdin=batch.encode())
    assert done.returncode == 0, done.stderr
    assert same(tmp_path / "sftp")
    for source, target in ((f"{local}/", f"{host}:rsync/"), (f"{host}:rsync/", f"{tmp_path}/rsync/")):
        done = ssh.run("rsync", "-a", source, target)
        assert done.returncode == 0, done.stderr
    assert same(tmp_path / "rsync")
    assert ssh.run("ssh", host, "git init -q repo && cd repo && git commit -q --allow-empty -m first").returncode == 0
    env = {**os.environ, "GIT_SSH_COMMAND": f"ssh -F {ssh.config}"}
    subprocess.run(["git", "clone", "-q", f"{host}:repo", tmp_path / "repo"], env=env, check=True, timeout=PATIENCE_S)
    log = subprocess.run(["git", "-C", tmp_path / "repo", "log", "--format=%s"], capture_output=True, check=True)
    assert log.stdout == b"first\n"


# --- forwards ----------------------------------------------------------------------------------------------------------------
ECHO = """
import socket
listener = socket.create_server(("127.0.0.1", {port}))
print("ready", flush=True)
while True:
    connection, _ = listener.accept()
    data = b""
    while piece := connection.recv(65536):
        data += piece
    connection.sendall(data[::-1])
    connection.close()
"""


@pytest.fixture
def echo(analyst: Agent) -> Iterator[int]:
    """A port of the office behind which all that comes is sent back in reverse, when its end has come."""
    analyst.exec(["tee", "echo.py"], stdin=ECHO.format(port=7007))
    analyst.exec("setsid python3 echo.py > echo.log 2>&1 & until grep -q ready echo.log; do sleep 0.05; done")
    yield 7007
    analyst.exec("pkill -f echo.py")


def test_a_local_forward_leads_to_the_offices_loopback(ssh: OpenSsh, host: str, echo: int) -> None:
    port = free_port()
    process = ssh.start("ssh", "-o", "ExitOnForwardFailure=yes", "-L", f"{port}:localhost:{echo}", host, "echo on; cat")
    assert process.stdout is not None
    assert process.stdout.readline() == b"on\n"
    data = os.urandom(2_000_000)
    for _ in range(2):
        with socket.create_connection(("127.0.0.1", port), timeout=PATIENCE_S) as client:
            client.sendall(data)
            client.shutdown(socket.SHUT_WR)
            got = b""
            while piece := client.recv(65536):
                got += piece
            assert got == data[::-1]
    process.communicate(b"", timeout=PATIENCE_S)


def test_a_jump_through_the_gateway_ends_in_the_office(ssh: OpenSsh, host: str, echo: int) -> None:
    done = ssh.run("ssh", "-W", f"127.0.0.1:{echo}", host, stdin=b"olleh")
    assert (done.returncode, done.stdout) == (0, b"hello")


@pytest.mark.parametrize("target", ["127.0.0.1.evil.example:80", "169.254.169.254:80", "192.168.0.1:22", "[::2]:80"])
def test_a_forward_leads_nowhere_but_to_the_office(ssh: OpenSsh, host: str, target: str) -> None:
    done = ssh.run("ssh", "-W", target, host)
    assert done.returncode != 0
    assert b"is not in the office" in done.stderr


def test_a_forward_to_a_port_where_nobody_listens_says_so(ssh: OpenSsh, host: str) -> None:
    done = ssh.run("ssh", "-W", "localhost:9", host)
    assert done.returncode != 0
    assert b"nothing listens on 127.0.0.1:9" in done.stderr


def test_remote_forwards_agents_and_displays_are_refused_and_the_person_is_told(ssh: OpenSsh, host: str) -> None:
    done = ssh.run("ssh", "-R", "0:localhost:22", host, "echo goes on")
    assert done.stdout == b"goes on\n"
    assert b"tenure: Remote forwards (-R) are refused" in done.stderr
    done = ssh.run("ssh", "-A", host, "echo ${SSH_AUTH_SOCK:-none} ${DISPLAY:-none}")
    assert done.stdout == b"none none\n"
    done = ssh.run("ssh", "-s", host, "no-such-subsystem")
    assert done.returncode != 0


# --- what goes wrong, as a person sees it ------------------------------------------------------------------------------------
def test_an_agent_that_does_not_exist_is_told_to_whoever_has_a_key(ssh: OpenSsh) -> None:
    done = ssh.run("ssh", "nobody-there.tenure", "true")
    assert done.returncode == 255
    assert b"tenure: There is no agent" in done.stderr


def test_a_key_that_was_removed_opens_nothing_and_ends_what_it_opened(
    live: Live, ssh: OpenSsh, host: str, tmp_path: Path
) -> None:
    other = open_ssh(live, tmp_path, [host.removesuffix(".tenure")])
    process = other.start("ssh", host, "echo on; sleep 600")
    assert process.stdout is not None
    assert process.stdout.readline() == b"on\n"
    added = live.tenure.ssh_keys.list()[-1]
    assert added.comment == "id_ed25519 of a test"
    live.tenure.ssh_keys.remove(added.fingerprint)
    _, told = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 255
    assert b"tenure: The key was removed." in told
    done = other.run("ssh", host, "true")
    assert done.returncode == 255
    assert b"Permission denied (publickey)" in done.stderr
    assert ssh.run("ssh", host, "true").returncode == 0


def test_the_use_of_a_key_is_noted(live: Live, ssh: OpenSsh, host: str) -> None:
    before = live.tenure.ssh_keys.list()[0].last_used_at
    assert ssh.run("ssh", host, "true").returncode == 0
    deadline = time.monotonic() + PATIENCE_S
    while (now := live.tenure.ssh_keys.list()[0].last_used_at) is None or now == before:
        assert time.monotonic() < deadline
        time.sleep(0.05)


# --- previews ----------------------------------------------------------------------------------------------------------------
WEBSOCKET_ECHO = """
import base64, hashlib, socketserver
class Echo(socketserver.StreamRequestHandler):
    def handle(self):
        head = {}
        self.rfile.readline()
        while line := self.rfile.readline().strip():
            name, _, value = line.decode().partition(": ")
            head[name.lower()] = value
        digest = hashlib.sha1(head["sec-websocket-key"].encode() + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11").digest()
        self.wfile.write(b"HTTP/1.1 101 Switching Protocols\\r\\nUpgrade: websocket\\r\\nConnection: Upgrade\\r\\n"
                         b"Sec-WebSocket-Accept: " + base64.b64encode(digest) + b"\\r\\n\\r\\n")
        while True:
            kind, size = self.rfile.read(2)
            assert size & 0x80 and size & 0x7f < 126
            mask, data = self.rfile.read(4), self.rfile.read(size & 0x7f)
            self.wfile.write(bytes([kind, len(data)]) + bytes(b ^ mask[i % 4] for i, b in enumerate(data)))
            if kind == 0x88:
                return
socketserver.ThreadingTCPServer.allow_reuse_address = True
socketserver.ThreadingTCPServer(("0.0.0.0", 7009), Echo).serve_forever()
"""


def browser(live: Live, agent: Agent, port: int) -> httpx.Client:
    """Comes in by a link, as a browser does, and keeps the cookie."""
    made = agent.preview(port, "/in/")
    host = made.origin.removeprefix("http://")
    client = httpx.Client(
        base_url=f"http://127.0.0.1:{live.settings.port}", headers={"Host": host}, timeout=PATIENCE_S, trust_env=False
    )
    opened = client.get(made.url.removeprefix(made.origin))
    assert (opened.status_code, opened.headers["location"]) == (303, f"{made.origin}/in/")
    return client


def test_a_browser_sees_what_a_program_in_the_office_serves_and_wakes_the_office(live: Live, analyst: Agent) -> None:
    analyst.exec(
        "mkdir -p www/in && echo '<h1>hello</h1>' > www/in/index.html && head -c 20000000 /dev/urandom > www/big"
    )
    analyst.sleep()
    with closing(browser(live, analyst, 7008)) as client:
        told = client.get("/in/", headers={"Accept": "text/html"})
        assert told.status_code == 502
        assert "Nothing answers on port 7008" in told.text
        assert analyst.show().state == "awake"
        analyst.exec("cd www && setsid python3 -m http.server 7008 > ../http.log 2>&1 &")
        deadline = time.monotonic() + PATIENCE_S
        while (page := client.get("/in/")).status_code == 502:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        assert (page.status_code, page.text) == (200, "<h1>hello</h1>\n")
        assert client.get("/nothing").status_code == 404
        assert client.head("/in/").headers["content-length"] == "15"
        digest = analyst.exec("sha256sum < www/big").stdout.split()[0]
        assert hashlib.sha256(client.get("/big").content).hexdigest() == digest
        client.cookies.clear()
        assert client.get("/in/").status_code == 401


def test_a_websocket_reaches_a_program_in_the_office(live: Live, analyst: Agent) -> None:
    analyst.exec(["tee", "ws.py"], stdin=WEBSOCKET_ECHO)
    analyst.exec("setsid python3 ws.py > ws.log 2>&1 &")
    with closing(browser(live, analyst, 7009)) as client:
        cookie = "; ".join(f"{name}={value}" for name, value in client.cookies.items())
        host = client.headers["Host"]
    deadline = time.monotonic() + PATIENCE_S
    while True:
        try:
            opened = websocket(
                f"ws://{host}/",
                sock=socket.create_connection(("127.0.0.1", live.settings.port)),
                additional_headers={"Cookie": cookie},
                compression=None,
            )
            break
        except InvalidStatus as error:  # the program is not up yet
            if error.response.status_code != 502 or time.monotonic() > deadline:
                raise
            time.sleep(0.05)
    with opened as connection:
        for message in ("hello", b"\x00\xff"):
            connection.send(message)
            assert connection.recv(timeout=PATIENCE_S) == message
