"""An office that does nothing, so that what is measured is the engine."""

from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path

from tenure.testing.fake_hands import FakeHands
from tenure.work.hands import SqlResult

DONE = SqlResult([], [], "OK")
WAIT_S = 0.2


class NullHands(FakeHands):
    """`nothing` is done at once, `slow` after `WAIT_S`; with `told` each writes when it began: `run time pid`."""

    def __init__(self, root: Path, told: Path | None = None) -> None:
        super().__init__(root)
        self._told = told

    async def sql(
        self, agent: str, statement: str, *, key: str | None = None, rows_max: int = 1000, read_only: bool = False
    ) -> SqlResult:
        if self._told is not None:
            tell(self._told, (key or "").partition(".")[0])
        if statement == "slow":
            await asyncio.sleep(WAIT_S)
        return DONE


def tell(file: Path, run: str) -> None:
    with file.open("ab", buffering=0) as opened:
        opened.write(f"{run} {time.time():.6f} {os.getpid()}\n".encode())
