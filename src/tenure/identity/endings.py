"""How grants end by themselves: their time is over, or who had them is gone. Whatever stands on one ends with it."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Sequence

from tenure.errors import TenureError
from tenure.identity.authorize import Principal
from tenure.identity.grants import Grant, GrantStore

log = logging.getLogger(__name__)

End = Callable[[Grant], Awaitable[None]]


class Endings:
    """`ends` says by kind of resource what is done when a grant to one is no more: it ends what goes on by it, and may be told
    twice. A grant is gone before it is told, so one that a dying server did not tell gives nothing either."""

    def __init__(self, store: GrantStore, ends: dict[str, End]) -> None:
        self._store, self._ends = store, ends

    async def sweep(self) -> None:
        """Ends those whose time is over; to be called every second or so."""
        await self._tell(await self._store.take_expired())

    async def forget(self, principal: Principal) -> None:
        """For a principal that is deleted: whoever has its name later has nothing of it."""
        await self._tell(await self._store.forget_principal(principal))

    async def _tell(self, ended: Sequence[Grant]) -> None:
        for grant in ended:
            end = self._ends.get(grant.kind)
            if end is not None:
                try:
                    await end(grant)
                except TenureError as error:
                    log.warning("ending the grant of %s to %s %s: %s", grant.principal, grant.kind, grant.name, error)
