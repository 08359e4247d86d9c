"""Somebody hostile is root in an office, or another user of the host: what they try harms nobody else. On a real server.

What other files prove on parts of it: test_isolation.py (sandbox, limits), test_access.py (who may what), test_egress.py (the way
out), test_office_database.py (SQL), test_rootfs.py (links in a root), test_door.py (frames).
"""

from __future__ import annotations

import asyncio
import json
import os
import shlex
import socket
import subprocess
import textwrap
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import h11
import httpx
import pytest

from fixtures.live import Live
from tenure.client import Agent
from tenure.errors import DoorError
from tenure.offices.door import door as door_module
from tenure.offices.door.door import Door, parse_job_status
from tenure.offices.door.frames import EXIT, STARTED, STDOUT, frame
from tenure.offices.door.session import DialledReader, Session, read_frame
from tenure.secrets.egress.exchange import end_to_end
from tenure.server.api.inbox import OFFICE_UNREAD_MAX
from tenure.server.gates import BODY_BYTES_MAX
from tenure.server.listeners import OFFICE_CONNECTIONS_MAX, PIPELINED_MAX, Pace
from tenure.setup.authorities import certificates

STRANGER = 65534
NAMESAKE = 1000
"""A person of the host whose user id is that of `agent` inside offices."""


@dataclass
class Stage:
    live: Live
    bad: Agent
    neighbour: Agent

    def do(self, program: str, *, timeout_s: float = 40.0) -> str:
        """Runs a Python program as root of the bad office; what it printed."""
        done = self.bad.exec(["python3", "-c", HELPERS + textwrap.dedent(program)], user="root", timeout_s=timeout_s)
        assert done.exit_code == 0, done.stderr
        return done.stdout.strip()

    def neighbour_works(self) -> None:
        """Its three ways: a command, its database, its objects."""
        assert self.neighbour.exec("echo there").stdout == "there\n"
        assert self.neighbour.sql("SELECT 42").rows == [[42]]
        self.neighbour.objects.put("b", "o", b"kept")
        assert self.neighbour.objects.get("b", "o") == b"kept"

    def server_files(self) -> int:
        return len(os.listdir(f"/proc/{self.live.pids()[0]}/fd"))


HELPERS = '''
import http.client, json, os, socket, struct, sys, threading, time
def ask(method, path, body=None, host="api", port=8700, **headers):
    """Status and body of one request to our own API."""
    there = http.client.HTTPConnection(host, port, timeout=20)
    sent = json.dumps(body) if body is not None and not isinstance(body, bytes) else body
    there.request(method, path, sent, {"content-type": "application/json", **headers})
    answer = there.getresponse()
    return answer.status, answer.read().decode("utf-8", "replace")
KEY = b"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\\r\\n\\r\\n"
def dial(name):
    there = socket.socket(socket.AF_UNIX)
    there.settimeout(5)
    there.connect(f"/.tenure/door/{name}.sock")
    return there
'''


@pytest.fixture(scope="module")
def stage(live: Live) -> Iterator[Stage]:
    stage = Stage(live, live.agent("bad"), live.agent("neighbour"))
    stage.neighbour_works()
    yield stage
    stage.neighbour_works()


CONNECT_ALL = [
    "/usr/bin/python3",
    "-c",
    """
import socket, sys
def reached(path):
    with socket.socket(socket.AF_UNIX) as there:
        return there.connect_ex(path) == 0
sys.exit(sum(map(reached, sys.argv[1:])))
""",
]
"""Its exit code says how many of the sockets it was let into."""


def as_user(uid: int, script: str) -> subprocess.CompletedProcess[str]:
    """What another user of the host can do."""
    words = ["setpriv", f"--reuid={uid}", f"--regid={uid}", "--clear-groups", "sh", "-c", script]
    return subprocess.run(words, capture_output=True, text=True, timeout=30, check=False)


# --- the office's API ------------------------------------------------------------------------------------------------
def test_requests_sent_ahead_are_not_worked_off(stage: Stage) -> None:
    answers = stage.do("""
        there = dial("api")
        there.settimeout(3)
        answers = b""
        try:
            there.sendall(b"GET /v1/health HTTP/1.1\\r\\n\\r\\n" * 2000)
            while data := there.recv(65536):
                answers += data
        except OSError:
            pass
        one = dial("api")
        one.sendall(b"GET /v1/health HTTP/1.1\\r\\nHost: api\\r\\n\\r\\n" * 2)
        time.sleep(0.5)
        print(answers.count(b"HTTP/1.1 200"), one.recv(65536).count(b"HTTP/1.1 200"))
    """)
    many, two = answers.split()
    assert int(many) <= PIPELINED_MAX + 2
    assert int(two) == 2
    stage.neighbour_works()


def test_requests_keep_a_pace() -> None:
    pace = Pace(per_s=10, burst=5)
    assert [pace.wait_s(100.0) for _ in range(5)] == [0, 0, 0, 0, 0]
    assert [round(pace.wait_s(100.0), 3) for _ in range(3)] == [0.1, 0.2, 0.3]
    assert pace.wait_s(200.0) == 0


@pytest.mark.parametrize("path", ["PUT /v1/agents/{own}/commands/archive", "POST /v1/agents/{own}/exec"])
def test_a_body_that_an_office_may_not_send_is_not_held(stage: Stage, path: str) -> None:
    """FastAPI reads a body whole before it asks who sends it."""
    said = stage.do(f"""
        there = dial("api")
        head = "{path.format(own=stage.bad.name)} HTTP/1.1\\r\\nHost: api\\r\\nContent-Type: application/json\\r\\n"
        there.sendall(head.encode() + b"Transfer-Encoding: chunked\\r\\n\\r\\n")
        sent = 0
        try:
            for _ in range({4 * BODY_BYTES_MAX} // 65536):
                there.sendall(b"10000\\r\\n" + b" " * 65536 + b"\\r\\n")
            there.sendall(b"0\\r\\n\\r\\n")
        except OSError:
            pass
        try:
            print(there.recv(4096)[:12])
        except OSError:
            print("cut")
    """)
    assert "413" in said or said in ("cut", "b''")


def test_no_trick_with_addresses_or_headers_makes_it_another_office(stage: Stage) -> None:
    own, other = stage.bad.name, stage.neighbour.name
    stage.neighbour.objects.put("secrets", "plan", b"the plan")
    assert json.loads(stage.do(f'print(ask("GET", "/v1/agents/{own}")[1])'))["name"] == own  # the way itself is open
    paths = [
        f"/v1/agents/{other}",
        f"/v1/agents/{own}/%2e%2e/{other}",
        f"/v1/agents/{own}%2f..%2f{other}",
        f"/v1/agents/{own}/../{other}",
        f"/v1/agents/{other.upper()}",
        f"/v1/agents/{other}%00",
        f"//v1/agents/{other}",
        f"http://127.0.0.1/v1/agents/{other}",
        f"/v1/agents/{other}/objects/secrets/plan",
        f"/v1/agents/{own}/objects/%2e%2e%2f%2e%2e%2f{other}%2fobjects%2fsecrets/plan",
        f"/v1/agents/{other}/objects",
        f"/v1/runs?agent={other}",
    ]
    for path in paths:
        said = stage.do(f'print(*ask("GET", {path!r}, Authorization="Bearer guessed", Host="localhost"))')
        assert "the plan" not in said, path
        assert not said.startswith("200") or said == '200 {"runs":[]}', (path, said)
    said = stage.do('print(*ask("GET", "/%2e%2e/%2e%2e/secrets/plan", host="s3", port=9000))')
    assert not said.startswith("200")
    everything = json.loads(stage.do('print(ask("GET", "/v1/agents")[1])'))["agents"]
    assert [one["name"] for one in everything] == [own]


@pytest.mark.parametrize("whose", ["own", "others"])
def test_an_office_attaches_to_nobody(stage: Stage, whose: str) -> None:
    name = stage.bad.name if whose == "own" else stage.neighbour.name
    for way in ("attach", "ssh"):
        said = stage.do(f"""
            there = dial("api")
            head = "GET /v1/agents/{name}/{way} HTTP/1.1\\r\\nHost: api\\r\\nConnection: Upgrade\\r\\n"
            there.sendall(head.encode() + b"Upgrade: websocket\\r\\nSec-WebSocket-Version: 13\\r\\n" + KEY)
            print(there.recv(12).decode())
        """)
        assert said == "HTTP/1.1 403"


def test_it_speaks_for_itself_only_and_not_without_end(stage: Stage) -> None:
    """Keys of its own: the key of a run's question to the owner can be known, and must not be used up by the agent."""
    said = stage.do("""
        print(ask("POST", "/v1/inbox", {"subject": "mine", "key": "run_1.parked.2"})[0])
        print(ask("POST", "/v1/inbox", {"subject": "again", "key": "run_1.parked.2"})[0])
        print(ask("POST", "/v1/inbox", {"subject": "s", "run_id": "run_of_somebody"})[0])
        print(ask("POST", "/v1/inbox", {"subject": "s", "body": "x" * 40000})[0])
    """)
    assert said.split() == ["201", "201", "404", "413"]
    settings = stage.live.settings
    transport = httpx.HTTPTransport(uds=str(settings.api_socket))
    token = {"Authorization": f"Bearer {settings.token_file.read_text().strip()}"}
    with httpx.Client(transport=transport, base_url="http://tenure", headers=token) as owner:
        message = {"agent": stage.bad.name, "subject": "the question", "key": "run_1.parked.2"}
        assert owner.post("/v1/inbox", json=message).json()["subject"] == "the question"
    mine = [message.subject for message in stage.live.tenure.inbox.list() if message.agent == stage.bad.name]
    assert sorted(mine) == ["mine", "the question"]
    last = stage.do(f"""
        there = http.client.HTTPConnection("api", 8700, timeout=20)
        for _ in range({OFFICE_UNREAD_MAX + 5}):
            there.request("POST", "/v1/inbox", json.dumps(dict(subject="s")), dict([("content-type", "application/json")]))
            answer = there.getresponse()
            answer.read()
        print(answer.status)
    """)
    assert last == "409"


# --- connections -------------------------------------------------------------------------------------------------------
def test_thousands_of_connections_take_few_of_the_servers_files(stage: Stage) -> None:
    before = stage.server_files()
    held = stage.do(f"""
        if os.fork():
            os._exit(0)
        os.setsid()
        for name in (1, 2):
            os.dup2(os.open("/dev/null", os.O_RDWR), name)
        held = []
        for name in ("db", "s3", "api", "egress", "door"):
            for _ in range({8 * OFFICE_CONNECTIONS_MAX}):
                try:
                    held.append(dial(name))
                except OSError:
                    break
        ask("PUT", "/flood/held", str(len(held)).encode(), host="s3", port=9000)
        while ask("GET", "/flood/stop", host="s3", port=9000)[0] != 200:
            time.sleep(0.2)
    """)
    assert held == ""
    # All of its objects' places may be taken by the flood itself: it has only to be seen in the server's files.
    for _ in range(30):
        stage.neighbour_works()
    assert stage.server_files() - before <= 4 * OFFICE_CONNECTIONS_MAX
    stage.bad.objects.put("flood", "stop", b"")
    stage.bad.restart()
    stage.neighbour_works()
    assert stage.bad.exec("echo back").stdout == "back\n"


IMPOSTOR = """
if os.fork():
    os._exit(0)
os.setsid()
for name in (0, 1, 2):
    os.dup2(os.open("/dev/null", os.O_RDWR), name)
liar = os.fork()
if liar:
    os.waitpid(liar, 0)
    ask("PUT", "/impostor/gone", b"", host="s3", port=9000)
    os._exit(0)
tricks = [b"1" + struct.pack(">I", 1 << 31), b"p\\0\\0\\0\\0x" + struct.pack(">I", 7) + b"99999 0",
          b"p\\0\\0\\0\\0Z\\0\\0\\0\\0", b"j\\0\\0\\0\\2ok", b""]
def lie(number):
    while True:
        try:
            there = dial("door")
            there.settimeout(None)
            if number % 6 == 5:
                there.sendall(b"unasked" * 1000)
                there.recv(1)
            elif there.recv(65536):
                there.sendall(tricks[number % 5])
            there.close()
        except OSError:
            pass
        time.sleep(0.02)
for number in range(24):
    threading.Thread(target=lie, args=(number,), daemon=True).start()
while ask("GET", "/impostor/stop", host="s3", port=9000)[0] != 200:
    time.sleep(0.1)
os._exit(0)
"""


def test_a_false_officed_harms_its_own_office_only_until_it_is_gone(stage: Stage) -> None:
    stage.do(IMPOSTOR)
    said: set[str] = set()
    for _ in range(60):
        try:
            stage.bad.exec(["true"], timeout_s=5)
        except DoorError as error:
            said.add(error.message)
        stage.neighbour_works()
    assert any("frame of" in message for message in said), said
    assert any("malformed exit" in message for message in said), said
    assert any("out of turn" in message for message in said), said
    stage.bad.objects.put("impostor", "stop", b"")
    for _ in range(200):
        if "gone" in [found.name for found in stage.bad.objects.list("impostor")]:
            break
        time.sleep(0.1)
    else:
        pytest.fail("the impostor did not end")
    for _ in range(20):
        assert stage.bad.exec("echo true").stdout == "true\n"


async def test_what_an_office_said_before_a_reset_counts() -> None:
    """An office that has said everything may close while the end of our input is under way: the kernel calls that a reset."""
    reader = DialledReader()
    reader.feed_data(frame(STDOUT, b"all of it") + frame(EXIT, b"0 0"))
    reader.set_exception(ConnectionResetError())
    assert await read_frame(reader) == (STDOUT, b"all of it")
    assert await read_frame(reader) == (EXIT, b"0 0")


async def test_an_office_that_keeps_silent_does_not_hold_its_caller(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(door_module, "END_GRACE_S", 0.2)
    door = Door("analyst", tmp_path)
    await door.open()
    reader, writer = await asyncio.open_unix_connection(tmp_path / "door.sock")
    writer.write(b"")
    running = asyncio.create_task(door.run(("true",), env={}, user="root", timeout_s=0.1))
    await reader.read(4)
    writer.write(frame(STARTED))
    with pytest.raises(DoorError, match="did not say"):
        await asyncio.wait_for(running, 10)
    writer.close()
    await door.close()


async def test_small_frames_leave_others_their_turn() -> None:
    reader = asyncio.StreamReader()
    reader.feed_data(frame(STDOUT) * 10_000 + frame(EXIT, b"0 0"))
    session = Session(reader, None)  # type: ignore[arg-type]
    turns = 0

    async def other() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    beside = asyncio.create_task(other())
    assert await session.wait() == 0
    beside.cancel()
    assert turns >= 100


@pytest.mark.parametrize(
    "status", [b"exited 999 0 1 1", b"exited -1 0 1 1", b"exited 0 0 1 " + b"9" * 400, b"exited 0 0 -5 1"]
)
def test_numbers_of_an_office_are_in_bounds(status: bytes) -> None:
    with pytest.raises(DoorError):
        parse_job_status(status + b"\n")


# --- egress ------------------------------------------------------------------------------------------------------------------
def test_a_request_leaves_with_one_length_only() -> None:
    """With two, this proxy and the next one could each take another end of it, and the rest for a request of its own."""
    reading = h11.Connection(h11.SERVER)
    reading.receive_data(
        b"POST http://a/ HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
    )
    request = reading.next_event()
    assert isinstance(request, h11.Request)
    assert end_to_end(request.headers, request=True) == [(b"transfer-encoding", b"chunked")]


# --- its own machine -----------------------------------------------------------------------------------------------------
def test_an_office_with_a_ruined_root_wakes_and_can_be_mended(live: Live) -> None:
    agent = live.agent("ruined")
    ruin = """
    rm /etc/hosts /etc/hostname && mkdir -p /etc/hosts/x /etc/hostname/x
    rm -f /etc/ssh/ssh_host_ed25519_key && mkfifo /etc/ssh/ssh_host_ed25519_key
    rm -f /usr/local/bin/sudo && mkdir -p /usr/local/bin/sudo/x
    rm -rf /etc/tenure && ln -s /etc/tenure /etc/tenure
    yes -- '-----BEGIN CERTIFICATE-----' | head -c 2000000 > /etc/ssl/certs/ca-certificates.crt
    """
    assert agent.exec(ruin, user="root").exit_code == 0
    agent.sleep()
    agent.wake()
    assert agent.exec("echo awake").stdout == "awake\n"
    assert "boots all the same" in agent.logs()
    mend = "rm -rf /etc/hosts /etc/hostname /etc/ssh/ssh_host_ed25519_key /usr/local/bin/sudo /etc/tenure"
    assert agent.exec(mend, user="root").exit_code == 0
    agent.restart()
    assert "127.0.0.2 db" in agent.exec("cat /etc/hosts").stdout
    assert agent.exec("sudo id -u").stdout == "0\n"
    agent.delete()


def test_certificates_are_read_in_proportion_to_their_length() -> None:
    """Eight million characters of beginnings: a search from each of them to the end would take hours."""
    begin, end = "-----BEGIN CERTIFICATE-----\n", "-----END CERTIFICATE-----\n"
    assert certificates(begin * 300_000) == []
    assert certificates(f"{begin}a\n{end}junk\n{begin}b\n{end}{begin}") == [f"{begin}a\n{end}", f"{begin}b\n{end}"]


def test_an_office_that_deleted_everything_gets_its_system_back_and_is_deleted(live: Live) -> None:
    agent = live.agent("emptied")
    agent.exec("rm -rf --no-preserve-root / 2> /dev/null", user="root")
    assert agent.exec(["true"], user="root").exit_code == 127
    agent.sleep()
    assert agent.exec("id -un; pwd; python3 -c 'print(6 * 7)'").stdout == "agent\n/home/agent\n42\n"
    assert "files of the system" in agent.logs()
    agent.delete()
    assert agent.name not in [one.name for one in live.tenure.agents.list()]


def test_what_leaks_ends_alone_and_its_office_says_so(stage: Stage) -> None:
    leak = "import time\na = []\nwhile True:\n    a.append(b'x' * 10_000_000)\n    time.sleep(0.05)"
    stage.bad.exec("setsid sleep 1000 > /dev/null 2>&1 < /dev/null & echo $! > ~/pid")
    assert stage.bad.exec(["python3", "-c", leak], timeout_s=60).exit_code != 0
    assert stage.bad.exec("kill -0 $(cat ~/pid) && kill $(cat ~/pid)").exit_code == 0, "it went along"
    (killed,) = [event for event in stage.bad.history() if event.what == "killed-process"]
    assert "its memory was used up" in killed.reason


def test_its_database_has_its_share_of_the_processors_and_memory(stage: Stage) -> None:
    stage.bad.sql("SELECT 1")
    data = stage.live.settings.volumes_dir / stage.bad.name / "postgres"
    pid = int((data / "postmaster.pid").read_text().split()[0])
    groups = dict(line.split(":", 2)[1:] for line in Path(f"/proc/{pid}/cgroup").read_text().splitlines())
    mount = Path("/sys/fs/cgroup")
    if (mount / "cgroup.controllers").exists():
        group = mount / groups[""].lstrip("/")
        assert (group / "cpu.max").read_text().split() == ["100000", "100000"]
        assert int((group / "memory.max").read_text()) == 1 << 30
        return
    of = {name: path for names, path in groups.items() for name in names.split(",")}
    assert (mount / "cpu" / of["cpu"].lstrip("/") / "cpu.cfs_quota_us").read_text() == "100000\n"
    assert (mount / "memory" / of["memory"].lstrip("/") / "memory.limit_in_bytes").read_text() == f"{1 << 30}\n"


# --- other users of the host ---------------------------------------------------------------------------------------------
@pytest.mark.parametrize("uid", [STRANGER, NAMESAKE])
def test_another_user_of_the_host_reaches_nothing_of_an_office(live: Live, uid: int) -> None:
    """From its first moment, before its database ran, too."""
    agent = live.agent("fresh")
    settings = live.settings
    volume = settings.volumes_dir / agent.name
    assert (volume / "rootfs/etc/hostname").read_text().strip() == agent.name
    spare = [path for path in settings.volumes_dir.glob(".spare-*") if path.is_dir()]
    for round_ in range(2):
        if round_:
            agent.sql("SELECT 1")
            assert (settings.run_dir / "pg" / agent.name / ".s.PGSQL.5432").is_socket()
        for place in (volume, *spare):
            assert as_user(uid, f"cat {place}/rootfs/etc/os-release").returncode != 0
            assert as_user(uid, f"echo planted > {place}/rootfs/home/agent/planted").returncode != 0
            assert as_user(uid, f"ls {place}/postgres {place}/objects").stdout == ""
    for secret in (settings.token_file, settings.home / "worker-token", settings.logs_dir / "server.log"):
        assert secret.exists()
        assert as_user(uid, f"cat {secret}").returncode != 0, secret
    sockets = _sockets(settings.run_dir)
    reached = subprocess.run(CONNECT_ALL + sockets, check=False).returncode
    assert reached == len(sockets)  # root is let in, but not
    refused = as_user(uid, shlex.join(CONNECT_ALL + sockets))
    assert (refused.returncode, refused.stderr) == (0, "")
    for pid in [*live.pids(), *live.sandbox_pids(agent.name)]:
        assert as_user(uid, f"cat /proc/{pid}/environ /proc/{pid}/mem").stdout == ""
    agent.delete()


def _sockets(directory: Path) -> list[str]:
    found = [path for path in directory.rglob("*") if path.is_socket() and "runsc" not in path.parts]
    assert {"api.sock", "door.sock", ".s.PGSQL.5432"} <= {path.name for path in found}
    return [str(path) for path in found]


def test_the_loopback_port_answers_nobody_without_the_token(live: Live) -> None:
    port, token = live.settings.port, live.settings.token_file.read_text().strip()

    def status(host: str, authorization: str) -> int:
        with socket.create_connection(("127.0.0.1", port), timeout=10) as there:
            head = f"GET /v1/agents HTTP/1.1\r\nHost: {host}\r\nAuthorization: {authorization}\r\n\r\n"
            there.sendall(head.encode())
            return int(there.recv(4096).split()[1])

    assert status(f"127.0.0.1:{port}", f"Bearer {token}") == 200
    assert status(f"127.0.0.1:{port}", "Bearer guessed") == 401
    assert status(f"127.0.0.1:{port}", f"Bearer {token[:-1]}") == 401
    assert status("evil.example", f"Bearer {token}") == 403
    assert status(f"evil.example:{port}", f"Bearer {token}") == 403
