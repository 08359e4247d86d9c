"""All named connections of an installation: made, granted, checked; and to each office those that were granted to it."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from tenure.data.connections.check import Checked, check
from tenure.data.connections.dial import Reach, check_ca
from tenure.data.connections.served import Guard
from tenure.data.connections.store import Connection, ConnectionStore
from tenure.data.connections.streams import ServedPostgres, ServedStream
from tenure.data.connections.targets import Kind, read_target
from tenure.data.connections.web import ServedHttp
from tenure.errors import InvalidArgument, NotFound
from tenure.identity.authorize import Principal, PrincipalKind, Resource, authorize
from tenure.identity.grants import Grant, GrantStore, granted
from tenure.names import check_name
from tenure.offices.neighbours import Neighbour, Served
from tenure.secrets.egress.dial import Resolver, resolve
from tenure.secrets.kept import KeptSecrets
from tenure.use import Use

KIND = "connection"
LEVEL = "use"
SECRET_CHARS_MAX = 16 * 1024


@dataclass(frozen=True)
class Shown:
    """A connection and who may use it."""

    connection: Connection
    grants: Sequence[Grant]


class Connections:
    """`tell` writes a line into the log of an agent; `changed` is told its name when what it is granted has changed."""

    def __init__(
        self,
        store: ConnectionStore,
        grants: GrantStore,
        kept: KeptSecrets,
        tell: Callable[[str, str], None],
        changed: Callable[[str], Awaitable[None]],
        *,
        resolver: Resolver = resolve,
    ) -> None:
        self._store, self._grants, self._kept, self._tell, self._resolver = store, grants, kept, tell, resolver
        self._changed = changed

    # --- the owner's side ---------------------------------------------------------------------------------------------
    async def create(
        self, name: str, url: str, *, secret: str = "", auth: str | None = None, private: bool = False, ca: str = ""
    ) -> Connection:
        """Nothing is connected to. Raises `InvalidName`, `InvalidArgument`, `AlreadyExists`."""
        check_name(name, "connection")
        check_secret(secret)
        target = read_target(url, auth=auth, has_secret=bool(secret), private=private)
        authorities = check_ca(ca) if ca else ""
        new_id = f"con_{secrets.token_hex(8)}"
        if secret:
            await asyncio.to_thread(self._kept.put, new_id, secret.encode())
        try:
            return await self._store.add(name, new_id, target, private=private, ca=authorities)
        except BaseException:
            self._kept.delete(new_id)
            raise

    async def list(self) -> Sequence[Connection]:
        return await self._store.all()

    async def get(self, name: str) -> Shown:
        """Raises `NotFound`."""
        connection = await self._store.get(name)
        return Shown(connection, await self._grants.of_resource(KIND, name))

    async def check(self, name: str) -> Checked:
        """Tries it from the server, as an office would. Raises `NotFound`."""
        connection = await self._store.get(name)
        return await check(self._reach(connection), await self._secret(connection))

    async def delete(self, name: str) -> None:
        """What offices have open through it is broken, its credential gone. Raises `NotFound`."""
        shown = await self.get(name)
        await self._grants.forget_resource(KIND, name)
        await self._store.remove(name)
        for grant in shown.grants:
            await self._tell_office(grant.principal.name)
        await asyncio.to_thread(self._kept.delete, shown.connection.id)

    async def grant(self, name: str, agent: str, *, by: Principal) -> Grant:
        """The office can use it when this returns, if it is awake. Granting again changes nothing. Raises `NotFound`."""
        await self._store.get(name)
        made = await self._grants.grant(_office(agent), KIND, name, LEVEL, by=by)
        await self._tell_office(agent)
        return made

    async def revoke(self, name: str, agent: str) -> None:
        """What the office has open through it is broken when this returns. Raises `NotFound`."""
        await self._grants.revoke(_office(agent), KIND, name)
        await self._tell_office(agent)

    async def end(self, grant: Grant) -> None:
        """A grant that is no more, by its time or with its agent: what is open by it is broken."""
        await self._tell_office(grant.principal.name)

    async def _tell_office(self, agent: str) -> None:
        with contextlib.suppress(NotFound):  # it is deleted, and its office with it
            await self._changed(agent)

    # --- the offices' side ----------------------------------------------------------------------------------------------
    async def neighbours(self, agent: str) -> Sequence[Neighbour]:
        """See `NeighbourSource`."""
        names = {grant.name for grant in await self._grants.of_principal(_office(agent), KIND)}
        if not names:
            return ()
        return [
            Neighbour(one.host, one.port, partial(self._serve, one, agent))
            for one in await self._store.all()
            if one.name in names
        ]

    async def _serve(self, connection: Connection, agent: str, path: Path, use: Use) -> Served:
        reach, secret = self._reach(connection), await self._secret(connection)
        guard = Guard(partial(self._permit, connection.name, agent), partial(self._tell, agent))
        match connection.target.kind:
            case Kind.POSTGRES:
                served = ServedPostgres(connection.name, reach, secret, guard, use)
            case Kind.HTTP:
                served = ServedHttp(connection.name, connection.host, reach, secret, guard, use)
            case _:
                served = ServedStream(connection.name, reach, guard, use)
        return await served.serve(path)

    async def _permit(self, name: str, agent: str) -> None:
        """Asked for each connection: a grant may have come to its end. Raises `Forbidden`."""
        grant = await self._grants.find(_office(agent), KIND, name)
        authorize(_office(agent), "connection:connect", granted(Resource(KIND, name=name), grant))

    def _reach(self, connection: Connection) -> Reach:
        return Reach(connection.target, connection.private, connection.ca, self._resolver)

    async def _secret(self, connection: Connection) -> str:
        if not connection.target.auth.has_secret:
            return ""
        return (await asyncio.to_thread(self._kept.get, connection.id)).decode()


def check_secret(secret: str) -> None:
    """Raises `InvalidArgument`, without repeating it, for what no header and no login could carry."""
    odd = secret != secret.strip() or any(ord(c) < 32 or ord(c) == 127 for c in secret)
    if odd or len(secret) > SECRET_CHARS_MAX:
        raise InvalidArgument(
            f"A credential is one line of at most {SECRET_CHARS_MAX} characters, without spaces around it.",
            hint="Nothing was kept of it.",
        )


def _office(agent: str) -> Principal:
    return Principal(PrincipalKind.OFFICE, check_name(agent))
