"""The SSH gateway against strangers, and against clients that misbehave: nobody learns anything, nothing grows, all ends.

The real gateway on a real port, with fake offices behind it.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any

import asyncssh
import pytest

from fixtures.api import eventually
from tenure.errors import SandboxError
from tenure.server.gateway import session, ssh
from tenure.server.gateway.arrivals import PENDING_PER_SOURCE_MAX
from tenure.server.gateway.ssh import FAILED_ATTEMPTS_MAX, LOGIN_BYTES_MAX, LOOKUPS_MAX, SshGateway
from tenure.server.listeners import bind_tcp
from tenure.server.services import LimitsWanted
from tenure.testing.fake_offices import FakeOffices
from tenure.testing.fake_ssh_keys import FakeSshKeys

PATIENCE_S = 30.0
MSG_IGNORE = 2


def new_key() -> asyncssh.SSHKey:
    return asyncssh.generate_private_key("ssh-ed25519")


@dataclass
class Served:
    """A gateway at `port`, where `key` is the owner's; the agent `analyst` exists."""

    gateway: SshGateway
    offices: FakeOffices
    keys: FakeSshKeys
    port: int
    key: asyncssh.SSHKey
    host_key: asyncssh.SSHKey

    @asynccontextmanager
    async def connected(self, user: str = "analyst", *, keys: Any = None, **options: Any) -> AsyncIterator[Any]:
        known = (asyncssh.import_public_key(self.host_key.export_public_key()),)
        async with asyncssh.connect(
            "127.0.0.1",
            self.port,
            username=user,
            client_keys=[self.key] if keys is None else keys,
            known_hosts=([*known], [], []),
            agent_path=None,
            config=None,
            encoding=None,
            **options,
        ) as connection:
            yield connection

    async def raw(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection("127.0.0.1", self.port)


async def until_closed(reader: asyncio.StreamReader) -> None:
    """Returns when the other side has hung up."""
    async with asyncio.timeout(PATIENCE_S):
        try:
            while await reader.read(65536):
                pass
        except ConnectionError:
            return


@pytest.fixture
async def served() -> AsyncIterator[Served]:
    async with serving() as made:
        yield made


@asynccontextmanager
async def serving() -> AsyncIterator[Served]:
    offices, keys, host_key, key = FakeOffices(), FakeSshKeys(), new_key(), new_key()
    await offices.create("analyst", LimitsWanted(), ())
    await keys.add("owner", key.export_public_key().decode())
    gateway = SshGateway(offices, keys, host_key)  # type: ignore[arg-type]
    with bind_tcp("127.0.0.1", 0, "NONE") as sock:
        await gateway.serve(sock)
        yield Served(gateway, offices, keys, sock.getsockname()[1], key, host_key)
        await gateway.close()
        await offices.close()


# --- strangers -----------------------------------------------------------------------------------------------------------
class Recorder(asyncssh.SSHClient):
    """What a client without a good key can see."""

    def __init__(self) -> None:
        self.seen: list[str] = []

    def auth_banner_received(self, msg: str, lang: str) -> None:
        self.seen.append(msg)

    def public_key_auth_requested(self) -> None:
        self.seen.append("asked for a public key")

    def password_auth_requested(self) -> str:
        self.seen.append("asked for a password")
        return "guess"

    def kbdint_auth_requested(self) -> str:
        self.seen.append("asked for an answer")
        return ""


async def test_whether_an_agent_exists_is_not_told_before_authentication(served: Served) -> None:
    told: list[tuple[list[str], type[BaseException], str]] = []
    for user in ("analyst", "nobody", "", "Not A Name", "root"):
        recorder = Recorder()
        wrong = new_key()
        with pytest.raises(asyncssh.PermissionDenied) as refused:
            async with served.connected(user, keys=[wrong], client_factory=lambda r=recorder: r):  # type: ignore[misc]
                pass
        told.append((recorder.seen, refused.type, str(refused.value).replace(repr(user), "").replace(user or "\0", "")))
    assert all(one == told[0] for one in told)
    assert not served.offices.sessions
    assert "password" not in str(told)
    assert "an answer" not in str(told)


async def test_who_has_authenticated_is_told_what_is_wrong(served: Served) -> None:
    for user, words in (("nobody", b"There is no agent 'nobody'"), ("Not-A-Name", b"is not a valid agent name")):
        async with served.connected(user) as connection:
            done = await connection.run("true")
            assert (done.exit_status, done.stdout) == (255, b"")
            assert words in done.stderr
            with pytest.raises(asyncssh.ChannelOpenError, match=words.decode()):
                await connection.open_connection("localhost", 80)


async def test_a_key_opens_only_what_its_principal_may(served: Served) -> None:
    key = new_key()
    await served.keys.add("office:other", key.export_public_key().decode())
    async with served.connected("analyst", keys=[key]) as connection:
        done = await connection.run("true")
        assert (done.exit_status, b"office:other may not agent:ssh on agent/analyst" in done.stderr) == (255, True)
        with pytest.raises(asyncssh.ChannelOpenError, match="may not"):
            await connection.open_connection("localhost", 80)
    assert not served.offices.sessions


async def test_a_key_that_was_removed_while_it_proved_itself_opens_nothing_for_long(served: Served) -> None:
    (key,) = await served.keys.list("owner")

    async def still_found(_: str) -> Any:
        return key

    served.keys.find = still_found  # type: ignore[method-assign]
    await served.keys.remove("owner", key.id)
    async with served.connected() as connection:
        await asyncio.wait_for(connection.wait_closed(), PATIENCE_S)
    await eventually(lambda: all(one.closed for one in served.offices.sessions))


async def test_holding_connections_open_keeps_nobody_out(served: Served) -> None:
    async with AsyncExitStack() as stack:
        held = [await served.raw() for _ in range(PENDING_PER_SOURCE_MAX * 3)]
        for _, writer in held:
            stack.callback(writer.close)
        await eventually(lambda: served.gateway.connections == PENDING_PER_SOURCE_MAX)
        async with served.connected() as connection:
            assert (await connection.run("echo in")).stdout == b"in\n"
            await until_closed(held[0][0])  # the ones that waited longest had to go
            more = [await served.raw() for _ in range(PENDING_PER_SOURCE_MAX * 2)]
            for _, writer in more:
                stack.callback(writer.close)
            await until_closed(more[0][0])
            assert (await connection.run("echo still in")).stdout == b"still in\n"


async def test_a_stranger_has_little_time_and_may_send_little(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ssh, "LOGIN_TIMEOUT_S", 0.3)
    async with serving() as served:
        for first in (b"", b"SSH-2.0-slow\r\n", b"\r\n"):
            reader, writer = await served.raw()
            writer.write(first)
            await until_closed(reader)
            writer.close()
    monkeypatch.setattr(ssh, "LOGIN_TIMEOUT_S", 600)
    async with serving() as served:
        for flood in (
            b"SSH-2.0-x\r\n" + bytes(LOGIN_BYTES_MAX),
            b"GET / HTTP/1.1\r\n" * LOGIN_BYTES_MAX,
            b"x" * 10_000_000,
        ):
            reader, writer = await served.raw()
            writer.write(flood)
            await until_closed(reader)
            writer.close()
        # Packets that the protocol allows, and that mean nothing.
        packet = struct.pack(">IBBI", 16 * 1024 - 4, 4, MSG_IGNORE, 16 * 1024 - 14) + bytes(16 * 1024 - 10)
        reader, writer = await served.raw()
        writer.write(b"SSH-2.0-x\r\n" + packet * 100)
        await until_closed(reader)
        writer.close()
        await eventually(lambda: served.gateway.connections == 0)
        async with served.connected() as connection:
            assert (await connection.run("echo fine")).stdout == b"fine\n"


async def test_attempts_to_authenticate_are_bounded(served: Served) -> None:
    looked_up = 0
    find = served.keys.find

    async def counted(fingerprint: str) -> Any:
        nonlocal looked_up
        looked_up += 1
        return await find(fingerprint)

    served.keys.find = counted  # type: ignore[method-assign]
    with pytest.raises((asyncssh.DisconnectError, ConnectionError)):
        async with served.connected(keys=[new_key() for _ in range(FAILED_ATTEMPTS_MAX * 2)]):
            pass
    assert FAILED_ATTEMPTS_MAX - 2 <= looked_up <= FAILED_ATTEMPTS_MAX + 1


async def test_strangers_keys_are_looked_up_few_at_a_time(served: Served) -> None:
    under_way, most, begun, may_end = 0, 0, 0, asyncio.Event()

    async def slow(_: str) -> Any:
        nonlocal under_way, most, begun
        under_way, begun = under_way + 1, begun + 1
        most = max(most, under_way)
        await may_end.wait()
        under_way -= 1

    served.keys.find = slow  # type: ignore[method-assign]

    async def try_it() -> None:
        with pytest.raises(asyncssh.PermissionDenied):
            async with served.connected(keys=[new_key()]):
                pass

    trying = [asyncio.create_task(try_it()) for _ in range(6)]
    await eventually(lambda: begun == LOOKUPS_MAX and served.gateway.connections == 6)
    may_end.set()
    await asyncio.gather(*trying)
    assert (most, begun) == (LOOKUPS_MAX, 6)


async def test_neither_weak_algorithms_nor_compression_are_spoken(served: Served) -> None:
    for options in (
        {"encryption_algs": ["3des-cbc"]},
        {"kex_algs": ["diffie-hellman-group14-sha1"]},
        {"kex_algs": ["diffie-hellman-group18-sha512"]},  # not weak, but dear
        {"mac_algs": ["hmac-md5"], "encryption_algs": ["aes128-ctr"]},
        {"compression_algs": ["zlib"]},
    ):
        with pytest.raises(asyncssh.KeyExchangeFailed):
            async with served.connected(**options):
                pass


# --- clients that are in -------------------------------------------------------------------------------------------------
async def test_sessions_and_forwards_per_connection_are_bounded(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ssh, "SESSIONS_MAX", 2)
    monkeypatch.setattr(ssh, "FORWARDS_MAX", 1)
    server = await asyncio.start_server(lambda reader, writer: None, "127.0.0.1", 0)
    served.offices.dials["127.0.0.1:80"] = server.sockets[0].getsockname()[1]
    async with served.connected() as connection:
        hanging = [await connection.create_process("hang") for _ in range(2)]
        with pytest.raises(asyncssh.ChannelOpenError, match="2 sessions are open"):
            await connection.create_process("hang")
        hanging[0].close()
        await hanging[0].wait_closed()
        await eventually(lambda: sum(one.closed for one in served.offices.sessions) == 1)
        assert (await connection.run("echo room")).stdout == b"room\n"
        _, writer = await connection.open_connection("localhost", 80)
        with pytest.raises(asyncssh.ChannelOpenError, match="1 forwarded connections"):
            await connection.open_connection("localhost", 80)
        writer.close()
        await eventually(lambda: not served.gateway._parts.inside.copy().pop()._forwards)
    server.close()


async def test_signals_sizes_and_breaks_reach_the_command(served: Served) -> None:
    async with served.connected() as connection:
        process = await connection.create_process("hang", term_type="xterm", term_size=(80, 24))
        await eventually(lambda: bool(served.offices.sessions))
        process.change_terminal_size(101, 33)
        await eventually(lambda: served.offices.sessions[0].sizes == [(33, 101)])
        process.change_terminal_size(0, 1_000_000)  # no terminal has that size
        process.send_signal("TERM")
        await process.wait()
        assert process.exit_status == 128 + 15
        assert served.offices.sessions[0].sizes == [(33, 101)]
        process = await connection.create_process("hang", term_type="xterm")
        process.send_signal("NO-SUCH")
        process.send_break(100)
        await process.wait()
        assert process.exit_status == 128 + 2


async def test_a_client_that_reads_nothing_stops_the_command_and_is_forgotten_when_it_goes(served: Served) -> None:
    async with served.connected() as connection:
        process = await connection.create_process("spew 1000000000", window=65536)
        process.stdout.channel.pause_reading()
        await eventually(lambda: bool(served.offices.sessions))
        spewing = served.offices.sessions[0]
        looks: list[int] = []
        while len(looks) < 10 or len(set(looks[-10:])) > 1:
            await asyncio.sleep(0.02)
            looks.append(spewing.frames_made)
        assert spewing.frames_made < 100
        assert not spewing.closed
    await eventually(lambda: spewing.closed)
    await eventually(lambda: served.gateway.connections == 0)


async def test_a_client_whose_connection_takes_nothing_stops_the_command_whatever_window_it_claims(
    served: Served,
) -> None:
    """A window is a promise of the client's: one of 2 GiB must not make the server hold that much."""
    async with served.connected() as connection:
        await connection.create_process("spew 4000000000", window=2**31 - 1)
        connection._transport.pause_reading()
        await eventually(lambda: bool(served.offices.sessions))
        spewing = served.offices.sessions[0]
        looks: list[int] = []
        while len(looks) < 20 or len(set(looks[-20:])) > 1:
            await asyncio.sleep(0.02)
            looks.append(spewing.frames_made)
        assert spewing.frames_made * 65536 < 64 * 1024 * 1024
        connection._transport.resume_reading()
    await eventually(lambda: spewing.closed)


async def test_a_command_that_reads_nothing_holds_the_client_back(served: Served) -> None:
    async with served.connected() as connection:
        process = await connection.create_process("hang")
        sent = 0

        async def send() -> None:
            nonlocal sent
            while True:
                process.stdin.write(bytes(65536))
                await process.stdin.drain()
                sent += 65536

        sending = asyncio.create_task(send())
        looks: list[int] = []
        while len(looks) < 20 or len(set(looks[-20:])) > 1:
            await asyncio.sleep(0.02)
            looks.append(sent)
        sending.cancel()
        assert sent < 16 * 1024 * 1024


async def test_a_channel_that_closes_while_its_input_waits_ends_the_command(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session, "STALL_PROBE_S", 0.05)
    async with served.connected() as connection:
        process = await connection.create_process("hang")
        for _ in range(20):
            process.stdin.write(bytes(65536))
        await eventually(lambda: bool(served.offices.sessions))
        await asyncio.sleep(0.1)
        process.stdin.channel.abort()
        await eventually(lambda: served.offices.sessions[0].closed)
        assert (await connection.run("echo goes on")).stdout == b"goes on\n"


# --- what goes wrong behind the gateway ----------------------------------------------------------------------------------
async def test_an_office_that_does_not_wake_is_told_as_text(served: Served) -> None:
    async def broken(*_: object, **__: object) -> Any:
        raise SandboxError("The sandbox did not start.", hint="`tenure logs analyst` says why.")

    served.offices.attach = served.offices.dial = broken  # type: ignore[method-assign,assignment]
    async with served.connected() as connection:
        done = await connection.run("true")
        assert done.exit_status == 255
        assert done.stderr == b"tenure: The sandbox did not start.\ntenure: `tenure logs analyst` says why.\n"
        done = await connection.run("true", term_type="xterm")
        assert done.stderr + done.stdout == (
            b"tenure: The sandbox did not start.\r\ntenure: `tenure logs analyst` says why.\r\n"
        )
        with pytest.raises(asyncssh.ChannelOpenError, match="did not start"):
            await connection.open_connection("localhost", 80)


async def test_a_fault_of_ours_ends_one_session_and_shows_nothing_of_itself(served: Served) -> None:
    attach = served.offices.attach

    async def faulty(*_: object, **__: object) -> Any:
        raise RuntimeError("secret detail")

    async with served.connected() as connection:
        served.offices.attach = faulty  # type: ignore[method-assign]
        done = await connection.run("true")
        assert (done.exit_status, b"Something in the gateway broke" in done.stderr) == (255, True)
        assert b"secret" not in done.stderr
        served.offices.attach = attach  # type: ignore[method-assign]
        assert (await connection.run("echo on")).stdout == b"on\n"


async def test_a_client_that_leaves_while_the_office_wakes_leaves_no_session_behind(served: Served) -> None:
    waking, awake = asyncio.Event(), asyncio.Event()
    attach = served.offices.attach

    async def slow(*args: Any, **options: Any) -> Any:
        waking.set()
        await awake.wait()
        return await attach(*args, **options)

    served.offices.attach = slow  # type: ignore[method-assign]
    async with served.connected() as connection:
        await connection.create_process("hang")
        await asyncio.wait_for(waking.wait(), PATIENCE_S)
    await eventually(lambda: served.gateway.connections == 0)
    awake.set()
    await eventually(lambda: len(served.offices.sessions) == 1 and served.offices.sessions[0].closed)


async def test_a_server_that_stops_says_so_and_leaves_nothing_open(served: Served) -> None:
    async with served.connected() as connection:
        process = await connection.create_process("hang")
        await eventually(lambda: bool(served.offices.sessions))
        stranger, writer = await served.raw()
        await eventually(lambda: served.gateway.connections == 2)
        await served.gateway.close()
        assert await process.stderr.read() == b"tenure: The Tenure server stops.\n"
        await process.wait()
        assert process.exit_status == 255
        await until_closed(stranger)
        writer.close()
        await eventually(lambda: served.offices.sessions[0].closed and served.gateway.connections == 0)


async def test_a_database_that_is_away_lets_nobody_in_and_breaks_nothing(served: Served) -> None:
    find: Callable[[str], Awaitable[Any]] = served.keys.find

    async def away(_: str) -> Any:
        raise SandboxError("away")

    served.keys.find = away  # type: ignore[method-assign]
    with pytest.raises(asyncssh.PermissionDenied):
        async with served.connected():
            pass
    served.keys.find = find  # type: ignore[method-assign]
    async with served.connected() as connection:
        assert (await connection.run("echo back")).stdout == b"back\n"


def test_a_port_that_is_taken_is_told_with_the_variable_that_names_it() -> None:
    from tenure.errors import SetupError

    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(SetupError) as told:
        bind_tcp("127.0.0.1", taken.getsockname()[1], "TENURE_SSH_PORT")
    assert "TENURE_SSH_PORT" in told.value.hint
