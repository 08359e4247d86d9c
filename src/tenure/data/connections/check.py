"""Whether a connection works: it is tried as an office would use it, short of doing anything there."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass

import h11

from tenure.data.connections.dial import Reach
from tenure.data.connections.postgres import PostgresLogin, Refused
from tenure.data.connections.targets import Auth, Kind
from tenure.data.connections.web import credential_header, scrubber
from tenure.errors import EgressUnreachable, TenureError

CHECK_TIMEOUT_S = 45.0
ANSWER_BYTES_MAX = 64 * 1024


@dataclass(frozen=True)
class Checked:
    """`credential_works` is None where that cannot be told: nothing was reached, there is none, or the API did not say."""

    reached: bool
    credential_works: bool | None
    detail: str
    hint: str = ""
    duration_s: float = 0.0

    @property
    def ok(self) -> bool:
        return self.reached and self.credential_works is not False


async def check(reach: Reach, secret: str) -> Checked:
    """Does not raise for what may be wrong over there."""
    began = time.monotonic()
    try:
        async with asyncio.timeout(CHECK_TIMEOUT_S):
            found = await _try(reach, secret)
    except Refused as error:
        wrong = error.sqlstate.startswith("28")
        found = Checked(True, False if wrong else None, error.message, error.hint)
    except TenureError as error:
        found = Checked(False, None, error.message, error.hint or _HINT)
    except TimeoutError:
        found = Checked(False, None, f"{reach.target.authority} did not answer within {CHECK_TIMEOUT_S:g} s.", _HINT)
    return Checked(found.reached, found.credential_works, found.detail, found.hint, time.monotonic() - began)


_HINT = "Can this machine reach it? A firewall in between, or a service that listens on another address or port, looks like this."


async def _try(reach: Reach, secret: str) -> Checked:
    target = reach.target
    match target.kind:
        case Kind.POSTGRES:
            login = await PostgresLogin(reach, secret, reach.dialer()).open()
            login.line.writer.transport.abort()
            version = login.parameters.get("server_version", "unknown")[:60]
            return Checked(
                True, True, f"PostgreSQL {version} lets {target.user} into {target.database} ({target.tls})."
            )
        case Kind.HTTP:
            return await _try_http(reach, secret)
        case _:
            line = await reach.line(reach.dialer())
            line.writer.transport.abort()
            return Checked(True, None, f"{target.authority} takes connections.")


async def _try_http(reach: Reach, secret: str) -> Checked:
    target, credential = reach.target, credential_header(reach.target, secret)
    line = await reach.protect(await reach.line(reach.dialer()))
    http = h11.Connection(h11.CLIENT, max_incomplete_event_size=ANSWER_BYTES_MAX)
    headers = [(b"host", target.authority.encode()), (b"user-agent", b"tenure"), (b"connection", b"close")]
    path = (target.path or "/").encode()
    try:
        request = h11.Request(method=b"GET", target=path, headers=[*headers, *([credential] if credential else [])])
        line.writer.write((http.send(request) or b"") + (http.send(h11.EndOfMessage()) or b""))
        while True:
            event = http.next_event()
            if event is h11.NEED_DATA:
                http.receive_data(await line.reader.read(ANSWER_BYTES_MAX))
            elif isinstance(event, h11.Response):
                break
            elif not isinstance(event, h11.InformationalResponse):
                raise h11.RemoteProtocolError("no answer")
    except (h11.ProtocolError, OSError):
        raise EgressUnreachable(f"{target.authority} does not speak HTTP as it should.") from None
    finally:
        line.writer.transport.abort()
    status = event.status_code
    answered = scrubber(target, secret).scrub(f"GET {target.path or '/'} was answered with {status}".encode()).decode()
    if target.auth is Auth.NONE:
        return Checked(True, None, f"{answered}.")
    if status in (401, 403):
        return Checked(
            True, False, f"{answered}: the credential is refused.", "Make the connection anew with another one."
        )
    if status < 400:
        return Checked(True, True, f"{answered}.")
    return Checked(
        True, None, f"{answered}, which says nothing about the credential.", "Try a path of the API from an office."
    )
