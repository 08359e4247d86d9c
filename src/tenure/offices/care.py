"""Who looks after the offices of an installation: trials, rebuilder and healer, put together."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from tenure.offices.healer import Healer
from tenure.offices.history import History
from tenure.offices.office import Office, OfficeParts
from tenure.offices.rebuilder import Leave, Rebuilder
from tenure.offices.rebuilding import Rebuilding
from tenure.offices.snapshots import OpenRuns, Snapshots
from tenure.offices.trials import Trials


@dataclass(frozen=True)
class Care:
    history: History
    trials: Trials
    rebuilder: Rebuilder
    healer: Healer

    async def close(self) -> None:
        """What goes on in the offices goes on; what is half repaired is finished by the next failure."""
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
    ) -> Care:
        trials = Trials(parts)
        rebuilder = Rebuilder(parts, snapshots, Rebuilding(parts, trials), history, leave, find_office)
        return cls(history, trials, rebuilder, Healer(parts, snapshots, trials, rebuilder, history, open_runs, leave))
