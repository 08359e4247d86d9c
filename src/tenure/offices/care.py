"""Who looks after the offices of an installation: trials, rebuilder, healer and supervisor, put together."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass

from tenure.offices.healer import Healer
from tenure.offices.history import History
from tenure.offices.office import Office, OfficeParts
from tenure.offices.rebuilder import Leave, Rebuilder
from tenure.offices.rebuilding import Rebuilding
from tenure.offices.snapshots import OpenRuns, Snapshots
from tenure.offices.supervisor import Supervisor
from tenure.offices.trials import Trials


@dataclass(frozen=True)
class Care:
    history: History
    trials: Trials
    rebuilder: Rebuilder
    healer: Healer
    supervisor: Supervisor

    async def close(self) -> None:
        """What goes on in the offices goes on; what is half repaired is finished by the next failure."""
        await self.supervisor.close()
        await self.healer.close()
        await self.rebuilder.close()

    @classmethod
    def of(
        cls,
        parts: OfficeParts,
        history: History,
        open_runs: OpenRuns,
        leave: Leave,
        snapshots: Snapshots,
        find_office: Callable[[str], Awaitable[Office]],
        held: Callable[[], Iterable[Office]],
    ) -> Care:
        """`held` are the offices that this server knows of."""
        trials = Trials(parts)
        rebuilder = Rebuilder(parts, snapshots, Rebuilding(parts, trials), history, leave, find_office)
        healer = Healer(parts, snapshots, trials, rebuilder, history, open_runs, leave)
        supervisor = Supervisor(held, parts.sandboxes, history, leave, healer.give_up)
        return cls(history, trials, rebuilder, healer, supervisor)
