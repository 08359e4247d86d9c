"""Logging in to somebody else's PostgreSQL with a password that the client does not have."""

from __future__ import annotations

import asyncio
import secrets
from dataclasses import dataclass, field

from tenure.data.connections import scram
from tenure.data.connections.dial import Reach
from tenure.data.connections.targets import Tls
from tenure.errors import EgressUnreachable, Forbidden
from tenure.postgres import wire
from tenure.secrets.egress.dial import Dialer, Line

LOGIN_TIMEOUT_S = 30.0
MESSAGE_BYTES_MAX = 64 * 1024
"""Of what comes before the first query can be sent."""
MESSAGES_MAX = 1000
OK, CLEARTEXT, MD5, SASL, SASL_CONTINUE, SASL_FINAL = 0, 3, 5, 10, 11, 12
REPLICATION_OFF = ("off", "false", "no", "0", "f", "n", "of", "fa", "fal", "fals")


@dataclass
class Login:
    """A connection that is logged in. `greeting` are the messages for the client, from AuthenticationOk to ReadyForQuery."""

    line: Line
    greeting: bytes = b""
    key: bytes = b""
    """What a CancelRequest for it carries."""
    parameters: dict[str, str] = field(default_factory=dict[str, str])


class Refused(EgressUnreachable):
    """The database refused; `answer` is its ErrorResponse, without what it may have repeated."""

    def __init__(self, message: str, answer: bytes, *, sqlstate: str = "", hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.answer, self.sqlstate = answer, sqlstate


@dataclass(frozen=True)
class PostgresLogin:
    """Logs in to `reach` as its user, whoever the client says that it is."""

    reach: Reach
    password: str
    dialer: Dialer

    async def open(self, asked: wire.Startup | None = None) -> Login:
        """`asked` is the client's startup packet: its settings are passed on, its user and database are not. Raises `Refused`,
        `Forbidden`, `EgressDenied`, `EgressUnreachable`."""
        line = await self._connect()
        try:
            async with asyncio.timeout(LOGIN_TIMEOUT_S):
                line.writer.write(self._startup(asked))
                return await self._log_in(line, asked)
        except (OSError, asyncio.IncompleteReadError, TimeoutError):
            line.writer.transport.abort()
            raise EgressUnreachable(
                f"{self.reach.target.authority} hung up, or did not answer, during login."
            ) from None
        except BaseException:
            line.writer.transport.abort()
            raise

    async def cancel(self, key: bytes) -> None:
        """Asks the database to end what the connection with this key does. Raises `EgressDenied`, `EgressUnreachable`."""
        line = await self._connect()
        line.writer.write(wire.cancel_request(int.from_bytes(key[:4], "big"), key[4:]))
        line.writer.close()

    async def _connect(self) -> Line:
        line = await self.reach.line(self.dialer)
        try:
            if self.reach.target.tls is not Tls.DISABLE:
                await self._ask_for_tls(line)
                line = await self.reach.protect(line)
        except BaseException:
            line.writer.transport.abort()
            raise
        return line

    async def _ask_for_tls(self, line: Line) -> None:
        line.writer.write(wire.ssl_request())
        try:
            async with asyncio.timeout(LOGIN_TIMEOUT_S):
                answer = await line.reader.read(2)  # more than one byte would be somebody's who is not behind the TLS
        except (OSError, TimeoutError):
            answer = b""
        if answer != b"S":
            raise EgressUnreachable(
                f"{self.reach.target.authority} has no TLS."
                if answer[:1] in (b"N", b"E")
                else f"{self.reach.target.authority} does not speak PostgreSQL.",
                hint="A database of your own network without TLS is reached with ?sslmode=disable, said so at creation.",
            )

    def _startup(self, asked: wire.Startup | None) -> bytes:
        target = self.reach.target
        parameters = dict(asked.parameters) if asked is not None else {"application_name": "tenure"}
        if parameters.pop("replication", "off").lower() not in REPLICATION_OFF:
            raise Forbidden("Replication is not part of a connection.")
        forced = {"user": target.user, "database": target.database}
        kept = {
            name: value for name, value in parameters.items() if name not in forced and not name.startswith("_pq_.")
        }
        return wire.startup(forced | kept)

    async def _log_in(self, line: Line, asked: wire.Startup | None) -> Login:
        exchange, expected, proven = scram.Exchange(self.password, secrets.token_urlsafe(18)), b"", True
        login = Login(line)
        for _ in range(MESSAGES_MAX):
            kind, body = await _message(line)
            if kind == b"E":
                raise self._refused(body)
            if kind == b"N":
                continue
            if kind != b"R" or len(body) < 4:
                raise self._nonsense("something else than a login")
            code, rest = int.from_bytes(body[:4], "big"), body[4:]
            try:
                if code == OK:
                    if not proven:
                        raise scram.ScramError("it left out the proof that it knows the password")
                    login.greeting = _negotiated(asked) + wire.message(b"R", bytes(4))
                    return await self._greet(login)
                if code == SASL_FINAL and expected:
                    exchange.verify(rest, expected)
                    proven = True
                elif code == SASL_CONTINUE and not expected:
                    answer, expected = await asyncio.to_thread(exchange.answer, rest)
                    line.writer.write(wire.message(b"p", answer))
                else:
                    proven = code != SASL
                    line.writer.write(wire.message(b"p", self._first_answer(code, rest, exchange)))
            except scram.ScramError as error:
                raise self._nonsense(str(error)) from None
        raise self._nonsense("too much")

    def _first_answer(self, code: int, rest: bytes, exchange: scram.Exchange) -> bytes:
        target = self.reach.target
        if code == SASL and scram.MECHANISM.encode() in rest.split(b"\0"):
            return scram.MECHANISM.encode() + b"\0" + len(exchange.first).to_bytes(4, "big") + exchange.first
        if code == MD5 and len(rest) == 4:
            return scram.md5_answer(target.user, self.password, rest)
        if code == CLEARTEXT:
            if not target.tls.is_verified:
                raise EgressUnreachable(
                    f"{target.authority} asks for the password in clear text, and has not proven who it is.",
                    hint="Reach it with sslmode=verify-full (and --ca FILE if need be), or have it use scram-sha-256.",
                )
            return self.password.encode() + b"\0"
        raise EgressUnreachable(
            f"{target.authority} wants a login that Tenure does not know (kind {code}).",
            hint="scram-sha-256, md5, and passwords over verified TLS are known.",
        )

    async def _greet(self, login: Login) -> Login:
        for _ in range(MESSAGES_MAX):
            kind, body = await _message(login.line)
            if kind == b"E":
                raise self._refused(body)
            if self.password and self.password.encode() in body:
                raise self._nonsense("the password itself")
            login.greeting += wire.message(kind, body)
            if len(login.greeting) > MESSAGE_BYTES_MAX:
                break
            if kind == b"K":
                login.key = body
            elif kind == b"S":
                name, _, value = body.partition(b"\0")
                login.parameters[name.decode("latin-1")] = value.rstrip(b"\0").decode("utf-8", "replace")
            elif kind == b"Z":
                return login
        raise self._nonsense("too much")

    def _refused(self, body: bytes) -> Refused:
        fields = wire.parse_error(body.replace(self.password.encode(), b"*****") if self.password else body)
        sqlstate, message = fields.get("sqlstate", "")[:5], fields.get("message", "it did not say why")[:500]
        hint = "Is it the right password? Make the connection anew with it." if sqlstate.startswith("28") else ""
        answer = wire.error_response(sqlstate or "08004", message, hint=hint)
        return Refused(f"{self.reach.target.authority} refuses: {message}.", answer, sqlstate=sqlstate, hint=hint)

    def _nonsense(self, what: str) -> EgressUnreachable:
        return EgressUnreachable(f"{self.reach.target.authority} is not the PostgreSQL that it should be: {what}.")


def _negotiated(asked: wire.Startup | None) -> bytes:
    """What tells a client that wants more than protocol 3.0 that this is what there is."""
    wanted = [name for name in asked.parameters if name.startswith("_pq_.")] if asked is not None else []
    if asked is None or (asked.code == wire.PROTOCOL_3_0 and not wanted):
        return b""
    names = b"".join(name.encode("utf-8", "surrogateescape") + b"\0" for name in wanted)
    return wire.message(b"v", wire.PROTOCOL_3_0.to_bytes(4, "big") + len(wanted).to_bytes(4, "big") + names)


async def _message(line: Line) -> tuple[bytes, bytes]:
    head = await line.reader.readexactly(5)
    length = int.from_bytes(head[1:], "big") - 4
    if not 0 <= length <= MESSAGE_BYTES_MAX:
        raise EgressUnreachable("What answers there does not speak PostgreSQL.")
    return head[:1], await line.reader.readexactly(length)
