"""The SSH gateway: `ssh AGENT@host -p 2222` gives a shell in the office of AGENT, and wakes it.

SSH ends here, with the keys of Tenure's principals, and what a connection asks for becomes sessions of the office's door:
no key has to lie in an office, and one decision point says who may enter which.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import time
from dataclasses import dataclass
from typing import Any

import asyncssh
from asyncssh.constants import (
    DISC_BY_APPLICATION,
    DISC_TOO_MANY_CONNECTIONS,
    OPEN_ADMINISTRATIVELY_PROHIBITED,
    OPEN_CONNECT_FAILED,
    OPEN_RESOURCE_SHORTAGE,
)
from asyncssh.misc import MaybeAwait

from tenure.errors import Forbidden, TenureError, Unauthenticated
from tenure.identity.authorize import Resource, authorize, principal_from
from tenure.names import check_name
from tenure.server.failures import shorten
from tenure.server.gateway.arrivals import Arrivals
from tenure.server.gateway.flow import Room, whole
from tenure.server.gateway.forward import OfficeForward, office_address
from tenure.server.gateway.session import OfficeSession
from tenure.server.listeners import Pace
from tenure.server.services import Offices, SshKey, SshKeys

log = logging.getLogger("tenure.ssh")

LOGIN_TIMEOUT_S = 30.0
"""From the connection to the end of authentication."""
LOGIN_BYTES_MAX = 128 * 1024
"""What a stranger may send; a login with ten keys takes a tenth of it."""
FAILED_ATTEMPTS_MAX = 20
"""Keys that are nobody's, other methods: an agent full of keys offers one after the other."""
LOOKUPS_MAX = 2
"""Of strangers' keys at a time: the control database has ten connections, for everybody."""
HANDSHAKES_PER_S = 50.0
HANDSHAKES_BURST = 100
"""Whoever comes faster waits in the listener's queue: a handshake takes about 2 ms of the server's one processor."""
SESSIONS_MAX = 32
FORWARDS_MAX = 128
"""Both per connection."""
KEEPALIVE_S = 60
KEEPALIVES_MAX = 10
HANG_UP_S = 0.5
CLOSE_GRACE_S = 2.0
ACCEPT_PAUSE_S = 0.5
VERSION = "Tenure"
KEX = ("mlkem768x25519-sha256", "curve25519-sha256", "curve25519-sha256@libssh.org", "ecdh-sha2-nistp256")
CIPHERS = (
    "aes128-gcm@openssh.com",
    "aes256-gcm@openssh.com",
    "chacha20-poly1305@openssh.com",
    "aes128-ctr",
    "aes256-ctr",
)
MACS = ("hmac-sha2-256-etm@openssh.com", "hmac-sha2-512-etm@openssh.com", "hmac-sha2-256", "hmac-sha2-512")
KEY_REMOVED = "The key was removed."
NO_REMOTE_FORWARD = "Remote forwards (-R) are refused: what runs in an office may not call out through your machine."


@dataclass(frozen=True)
class _Parts:
    """What every connection of a gateway shares."""

    offices: Offices
    keys: SshKeys
    arrivals: Arrivals[GatewayConnection]
    lookups: asyncio.Semaphore
    inside: set[Gatekeeper]
    """Of all who have authenticated."""


class GatewayConnection(asyncssh.SSHServerConnection):
    """asyncssh's connection with the bounds that it lacks: how much a stranger may send and try, and a transport that is
    full holds back those who write."""

    def __init__(self, loop: asyncio.AbstractEventLoop, options: asyncssh.SSHServerConnectionOptions) -> None:
        super().__init__(loop, options)
        self.room = Room()
        self.is_stranger = True
        self._sent_bytes = 0
        self._failed_attempts = 0

    def data_received(self, data: bytes, datatype: int | None = None) -> None:
        if self.is_stranger:
            self._sent_bytes += len(data)
            if self._sent_bytes > LOGIN_BYTES_MAX:
                self.abort()
                return
        super().data_received(data, datatype)

    def pause_writing(self) -> None:
        self.room.pause_writing()

    def resume_writing(self) -> None:
        self.room.resume_writing()

    def send_userauth_failure(self, partial_success: bool) -> None:
        self._failed_attempts += 1
        if self._failed_attempts > FAILED_ATTEMPTS_MAX:
            raise asyncssh.PermissionDenied("Too many attempts to authenticate")
        super().send_userauth_failure(partial_success)

    async def reload_config(self) -> None:
        """Ours does not depend on the user; asyncssh's would start a thread for each stranger."""

    @property
    def agent(self) -> str:
        """The user name: of the agent whose office is wanted. Nobody has checked it."""
        return str(self.get_extra_info("username", ""))

    @property
    def peer(self) -> str:
        return str((self.get_extra_info("peername") or ("?",))[0])


class Gatekeeper(asyncssh.SSHServer):
    """One connection: whom its key stands for, and what it may open. Before the key has proved itself all user names are
    alike: whether an agent exists is told only to whom it concerns."""

    def __init__(self, parts: _Parts) -> None:
        self._parts = parts
        self._shown: SshKey | None = None
        self._key: SshKey | None = None
        self._notes: list[str] = []
        self._sessions: set[OfficeSession] = set()
        self._forwards: set[OfficeForward] = set()
        self._touching: asyncio.Task[None] | None = None

    # --- who ---------------------------------------------------------------------------------------------------------------
    def connection_made(self, conn: asyncssh.SSHServerConnection) -> None:
        assert isinstance(conn, GatewayConnection)
        self._conn = conn
        if (gone := self._parts.arrivals.arrived(conn, conn.peer)) is not None:
            gone.abort()

    def begin_auth(self, username: str) -> bool:
        return True

    def public_key_auth_supported(self) -> bool:
        return True

    async def validate_public_key(self, username: str, key: asyncssh.SSHKey) -> bool:
        """Whether the key is somebody's. asyncssh then has the client prove that it has the private half."""
        self._shown = None
        try:
            async with self._parts.lookups:
                self._shown = await self._parts.keys.find(key.get_fingerprint())
        except TenureError as error:
            log.warning("cannot look up a key: %s", error.message)
        return self._shown is not None

    def auth_completed(self) -> None:
        self._key = self._shown
        self._conn.is_stranger = False
        if self._key is None:  # only `validate_public_key` lets anybody in
            self._conn.abort()
            return
        if not self._parts.arrivals.authenticated(self._conn):
            self._conn.disconnect(DISC_TOO_MANY_CONNECTIONS, "Too many connections are open.")
            return
        self._parts.inside.add(self)
        log.info("%s with key %s from %s: agent %s", *self._whom(), self._conn.peer, shorten(self._conn.agent, 60))
        self._touching = asyncio.create_task(self._touch(self._key.id))

    def _whom(self) -> tuple[str, str]:
        assert self._key is not None
        return self._key.principal, self._key.fingerprint

    async def _touch(self, key_id: str) -> None:
        """Notes the use of the key, which also tells whether it was removed while it proved itself."""
        try:
            if not await self._parts.keys.used(key_id):
                self.hang_up(KEY_REMOVED)
        except TenureError as error:
            log.warning("cannot note the use of a key: %s", error.message)

    def connection_lost(self, exc: Exception | None) -> None:
        self._parts.arrivals.left(self._conn)
        self._parts.inside.discard(self)
        for forward in list(self._forwards):
            forward.abandon()
        if self._key is None and self._conn.is_stranger:
            log.debug("%s left unauthenticated: %s", self._conn.peer, exc)

    def came_with(self, key_id: str) -> bool:
        return self._key is not None and self._key.id == key_id

    def hang_up(self, reason: str) -> None:
        """Ends all that is open, and soon the connection: a disconnect at once could overtake the reason."""
        self._key = None
        for session in list(self._sessions):
            session.end(reason)
        for forward in list(self._forwards):
            forward.abandon()
        asyncio.get_running_loop().call_later(HANG_UP_S, self._disconnect, reason)

    def _disconnect(self, reason: str) -> None:
        if not self._conn.is_closed():
            self._conn.disconnect(DISC_BY_APPLICATION, reason)

    # --- what ----------------------------------------------------------------------------------------------------------------
    async def _admit(self) -> None:
        """Raises what forbids this connection's principal the office that it names."""
        if self._key is None:
            raise Unauthenticated("The key of this connection was removed.", hint="`tenure ssh-key add` lets a key in.")
        agent = self._conn.agent
        authorize(principal_from(self._key.principal), "agent:ssh", Resource("agent", owner=agent, name=agent))
        await self._parts.offices.need(check_name(agent))

    def session_requested(self) -> OfficeSession:
        if len(self._sessions) >= SESSIONS_MAX:
            raise asyncssh.ChannelOpenError(
                OPEN_RESOURCE_SHORTAGE, f"{SESSIONS_MAX} sessions are open on this connection already."
            )
        notes, self._notes = self._notes, []
        session = OfficeSession(
            self._parts.offices,
            self._conn.agent,
            admit=self._admit,
            ended=self._sessions.discard,
            link=self._conn.room,
            notes=notes,
        )
        self._sessions.add(session)
        return session

    def connection_requested(
        self, dest_host: str, dest_port: int, orig_host: str, orig_port: int
    ) -> MaybeAwait[OfficeForward]:
        if len(self._forwards) >= FORWARDS_MAX:
            raise asyncssh.ChannelOpenError(
                OPEN_RESOURCE_SHORTAGE, f"{FORWARDS_MAX} forwarded connections are open on this connection already."
            )
        return self._forward(dest_host, dest_port)

    async def _forward(self, host: str, port: int) -> OfficeForward:
        try:
            await self._admit()
            stream = await whole(
                self._parts.offices.dial(self._conn.agent, office_address(host, port)),
                lambda dialled: dialled[1].close(),
            )
        except Forbidden as error:
            raise asyncssh.ChannelOpenError(OPEN_ADMINISTRATIVELY_PROHIBITED, _line(error)) from error
        except TenureError as error:
            raise asyncssh.ChannelOpenError(OPEN_CONNECT_FAILED, _line(error)) from error
        forward = OfficeForward(stream, link=self._conn.room, ended=self._forwards.discard)
        self._forwards.add(forward)
        return forward

    def unix_connection_requested(self, dest_path: str) -> bool:
        raise asyncssh.ChannelOpenError(
            OPEN_ADMINISTRATIVELY_PROHIBITED,
            "Forwards to UNIX sockets are not possible, only to the office's loopback.",
        )

    def server_requested(self, listen_host: str, listen_port: int) -> bool:
        self._note_refusal()
        return False

    def unix_server_requested(self, listen_path: str) -> bool:
        self._note_refusal()
        return False

    def _note_refusal(self) -> None:
        # SSH has no room for a reason in the answer: the next session tells it.
        if NO_REMOTE_FORWARD not in self._notes:
            self._notes.append(NO_REMOTE_FORWARD)


def _line(error: TenureError) -> str:
    return " ".join(f"{error.message} {error.hint}".split())


class SshGateway:
    """A running gateway."""

    def __init__(self, offices: Offices, keys: SshKeys, host_key: asyncssh.SSHKey) -> None:
        self._parts = _Parts(offices, keys, Arrivals(), asyncio.Semaphore(LOOKUPS_MAX), set())
        self._host_key = host_key
        self._pace = Pace(HANDSHAKES_PER_S, HANDSHAKES_BURST)
        self._accepting: asyncio.Task[None] | None = None

    @property
    def connections(self) -> int:
        return len(self._parts.arrivals)

    async def serve(self, sock: socket.socket) -> None:
        """Answers on a bound and listening socket from now on; the caller closes it after `close`."""
        logging.getLogger("asyncssh").setLevel(logging.WARNING)  # it would log every command
        options = await asyncio.to_thread(asyncssh.SSHServerConnectionOptions, **self._options())
        self._accepting = asyncio.create_task(self._accept(sock, options))

    def _options(self) -> dict[str, Any]:
        return {
            "server_factory": lambda: Gatekeeper(self._parts),
            "server_version": VERSION,
            "server_host_keys": [self._host_key],
            "config": None,
            "login_timeout": LOGIN_TIMEOUT_S,
            "keepalive_interval": KEEPALIVE_S,
            "keepalive_count_max": KEEPALIVES_MAX,
            "kex_algs": KEX,
            "encryption_algs": CIPHERS,
            "mac_algs": MACS,
            "compression_algs": None,
            "public_key_auth": True,
            "password_auth": False,
            "kbdint_auth": False,
            "host_based_auth": False,
            "gss_host": None,
            "agent_forwarding": False,
            "x11_forwarding": False,
            "line_editor": False,
            "encoding": None,
        }

    async def _accept(self, sock: socket.socket, options: asyncssh.SSHServerConnectionOptions) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                if (wait_s := self._pace.wait_s(time.monotonic())) > 0:
                    await asyncio.sleep(wait_s)
                client, _ = await loop.sock_accept(sock)
                await loop.connect_accepted_socket(lambda: GatewayConnection(loop, options), client)
            except OSError as error:  # no descriptors left, or a client that was gone at once
                log.warning("a connection was not accepted: %s", error)
                await asyncio.sleep(ACCEPT_PAUSE_S)

    def hang_up(self, key_id: str) -> None:
        """Ends the connections that came in with a key that is nobody's any more."""
        for one in list(self._parts.inside):
            if one.came_with(key_id):
                one.hang_up(KEY_REMOVED)

    async def close(self) -> None:
        """Accepts no more, tells every client that the server stops, and ends what still runs. May be called again."""
        if self._accepting is not None:
            self._accepting.cancel()
            await asyncio.gather(self._accepting, return_exceptions=True)
            self._accepting = None
        for one in list(self._parts.inside):
            one.hang_up("The Tenure server stops.")
        connections = self._parts.arrivals.all()
        for connection in connections:
            if connection.is_stranger:
                connection.abort()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(CLOSE_GRACE_S):
                await asyncio.gather(*(connection.wait_closed() for connection in connections))
