"""Takes the snapshots around steps, for one driver."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from tenure.errors import LeaseLost
from tenure.faultpoints import reach
from tenure.work import events as e
from tenure.work.failures import Failure, failure_of
from tenure.work.hands import Hands
from tenure.work.keys import snapshot_key
from tenure.work.snapshots import Spacing, is_clean, wants_after, wants_before
from tenure.work.state import Node, RunState


class Turn:
    """Who writes shares it, who takes a snapshot has it alone."""

    def __init__(self) -> None:
        self._alone = asyncio.Lock()
        self._sharing = 0
        self._nobody = asyncio.Event()
        self._nobody.set()

    @asynccontextmanager
    async def shared(self) -> AsyncGenerator[None]:
        async with self._alone:
            self._sharing += 1
            self._nobody.clear()
        try:
            yield
        finally:
            self._sharing -= 1
            if not self._sharing:
                self._nobody.set()

    @asynccontextmanager
    async def alone(self) -> AsyncGenerator[None]:
        async with self._alone:
            await self._nobody.wait()
            yield


class Keeper:
    """Hold `turn` alone from before a snapshot is asked for until its event is written, and shared while an intent is written: so
    no step begins unseen while the office is copied, and what the snapshot is said to hold is what it holds."""

    def __init__(self, hands: Hands, inherited: frozenset[str]) -> None:
        """`inherited` are nodes that another driver began: it may have taken their snapshots and died before it wrote so."""
        self._hands, self._inherited = hands, inherited
        self._spacing = Spacing()
        self.turn = Turn()

    async def before(self, state: RunState, node: Node, attempt: int) -> list[e.SnapshotTaken] | Failure:
        """What to write before the intent. A risky step is not begun without its snapshot."""
        if not wants_before(node):
            return []
        try:
            return [await self._take(state, node, attempt, before=True)]
        except LeaseLost:
            raise
        except Exception as error:  # noqa: BLE001 - whatever it is, the ladder has to hear of it
            return failure_of(error, "The snapshot before this risky step could not be taken.")

    async def after(self, state: RunState, node: Node) -> tuple[list[e.SnapshotTaken], str]:
        """What to write before the success, and why there is none where there should be one: the step is done all the same."""
        if not wants_after(state, node):
            return [], ""
        in_any_case = node.step.snapshot or node.id in self._inherited
        if not in_any_case and not self._spacing.is_due(time.monotonic(), verified=is_clean(state, node)):
            return [], ""
        try:
            return [await self._take(state, node, node.attempt, before=False)], ""
        except LeaseLost:
            raise
        except Exception as error:  # noqa: BLE001 - see above
            return [], f"no snapshot was taken: {failure_of(error).message}"

    async def _take(self, state: RunState, node: Node, attempt: int, *, before: bool) -> e.SnapshotTaken:
        key = snapshot_key(state.run_id, node.id, attempt, before=before)
        clean, point = is_clean(state, node), f"{node.id}/{'before' if before else 'after'}"
        began_s = time.monotonic()
        reach(f"effect.snapshot.before/{point}")
        taken = await self._hands.take_snapshot(
            state.agent, key, run_id=state.run_id, node=node.id, before=before, verified=clean, seq=state.seq
        )
        reach(f"effect.snapshot.after/{point}")
        self._spacing.taken(began_s, time.monotonic(), verified=taken.verified)
        return e.SnapshotTaken(
            node=node.id,
            attempt=attempt,
            snapshot=taken.id,
            before=before,
            verified=taken.verified,
            at_seq=taken.seq,
        )
