"""Who looks after the offices of an installation: trials, rebuilder, healer, supervisor and memory guard, put together."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field

from tenure.offices.healer import Healer
from tenure.offices.history import History, What
from tenure.offices.office import Office, OfficeParts
from tenure.offices.rebuilder import Leave, Rebuilder
from tenure.offices.rebuilding import Rebuilding
from tenure.offices.sandboxes.memory_guard import MemoryGuard
from tenure.offices.snapshots import OpenRuns, Snapshots
from tenure.offices.supervisor import Supervisor
from tenure.offices.trials import Trials

OUTGROWN_EVERY_S = 60.0
"""How often the history says of one office that a process was ended for its memory: one that leaks on and on must not crowd out
what else happened."""


@dataclass(frozen=True)
class Care:
    history: History
    trials: Trials
    rebuilder: Rebuilder
    healer: Healer
    supervisor: Supervisor
    memory_guard: MemoryGuard

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

        async def run_inside(name: str, script: str) -> str:
            office = next((office for office in held() if office.record.name == name and office.is_watchable), None)
            if office is None:
                return ""
            result = await office.door.run(("/bin/sh", "-c", script), env={}, user="root", counts=False)
            return result.stdout.decode()

        guard = MemoryGuard(parts.sandboxes, run_inside, _Outgrown(history).tell)
        return cls(history, trials, rebuilder, healer, supervisor, guard)


@dataclass
class _Outgrown:
    history: History
    told_s: dict[str, float] = field(default_factory=dict[str, float])

    async def tell(self, name: str, held_bytes: int) -> None:
        now_s = time.monotonic()
        if now_s >= self.told_s.get(name, -OUTGROWN_EVERY_S) + OUTGROWN_EVERY_S:
            self.told_s[name] = now_s
            reason = f"its memory was used up: ended the process that held {held_bytes >> 20} MiB"
            await self.history.record(name, What.KILLED, reason, {"held_bytes": held_bytes})
