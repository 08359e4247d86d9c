"""Tenure's part of `durable.py`: a process that does one order a line, `{"do": …}`, and answers with a line of JSON.

With `work` as its third argument it is a worker instead, until it is killed."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from memory import pss_mib
from null_hands import NullHands
from tenure.database import ControlDatabase
from tenure.work import claims
from tenure.work.plan import Approval, Plan, PlanStep, RunSql
from tenure.work.runs import Runs
from tenure.work.worker import Worker

AGENT, CONCURRENCY, CREATED_AT_ONCE = "bench", 64, 8
LOOK_S = 0.05
READY_S = 2.0
"""In which a worker has connected and looked at the queue once."""


class Given:
    """A brain that has its plan already."""

    name = "given"

    def __init__(self, *steps: PlanStep, concurrency: int = CONCURRENCY) -> None:
        self._plan = Plan(steps=steps, concurrency=concurrency)

    def plan(self, goal: str, inputs: Any) -> Plan:
        return self._plan


def step(number: int, *needs: str, statement: str = "nothing", **more: Any) -> PlanStep:
    return PlanStep(id=f"s{number}", needs=needs, effect=RunSql(statement=statement), snapshot=False, **more)


def row_of(count: int, statement: str = "nothing") -> Given:
    return Given(*(step(n, *([f"s{n - 1}"] if n else []), statement=statement) for n in range(count)))


class Side:
    def __init__(self, database: ControlDatabase, told: Path) -> None:
        self._database, self._told, self._runs = database, told, Runs(database)
        self._parked: list[str] = []
        self._stack = contextlib.AsyncExitStack()

    @asynccontextmanager
    async def _working(self, told: Path | None = None) -> AsyncGenerator[None]:
        async with ControlDatabase(self._database.dsn, checked=False) as database:  # as a worker's own process has it
            worker = asyncio.create_task(Worker(database, NullHands(self._told.parent, told)).run())
            try:
                yield
            finally:
                worker.cancel()
                await asyncio.gather(worker, return_exceptions=True)

    async def _begin(self, brain: Given) -> str:
        return (await self._runs.create_with(brain, agent=AGENT, goal="bench", inputs={})).id

    async def _until(self, state: str, count: int, runs: list[str]) -> None:
        statement = "select count(*) as n from runs where id = any(%s) and state = %s"
        while (await self._database.fetch(statement, (runs, state)))[0]["n"] < count:  # noqa: ASYNC110
            await asyncio.sleep(LOOK_S)

    async def _carry(self, brain: Given) -> float:
        """Seconds from the first to the last entry of its worker."""
        async with self._working():
            run = await self._begin(brain)
            await self._until("succeeded", 1, [run])
        rows = await self._database.fetch(
            "select min(at) as began, max(at) as ended from journal where run_id = %s and fence is not null", (run,)
        )
        return (rows[0]["ended"] - rows[0]["began"]).total_seconds()

    async def steps(self, count: int) -> dict[str, float]:
        return {"took_s": await self._carry(row_of(count))}

    async def parallel(self, count: int) -> dict[str, float]:
        return {"took_s": await self._carry(Given(*(step(n) for n in range(count))))}

    async def runs(self, count: int) -> dict[str, float]:
        """Of runs with a single step: queued, and then carried."""
        began = time.perf_counter()
        runs = [await self._begin(Given(step(0))) for _ in range(count)]
        queued = time.perf_counter()
        async with self._working():
            await self._until("succeeded", count, runs)
        rows = await self._database.fetch(
            "select max(at) - min(at) as took from journal where fence is not null and run_id = any(%s)", (runs,)
        )
        return {"spawn_s": queued - began, "execute_s": rows[0]["took"].total_seconds()}

    async def begin_slow(self, count: int, steps: int) -> dict[str, list[str]]:
        return {"runs": [await self._begin(row_of(steps, "slow")) for _ in range(count)]}

    async def reaped(self) -> dict[str, int]:
        """What a server does whose worker died."""
        return {"released": await claims.release_dead_claims(self._database)}

    async def park(self, count: int) -> dict[str, float]:
        """Runs whose only step has to be allowed; their worker goes on."""
        await self._stack.enter_async_context(self._working(self._told))
        await asyncio.sleep(1)
        before_mib, began, slots = pss_mib(), time.perf_counter(), asyncio.Semaphore(CREATED_AT_ONCE)

        async def one() -> str:
            async with slots:
                return await self._begin(Given(step(0, approval=Approval())))

        self._parked = list(await asyncio.gather(*(one() for _ in range(count))))
        await self._until("parked", count, self._parked)
        return {"took_s": time.perf_counter() - began, "before_mib": before_mib, "after_mib": pss_mib()}

    async def wake(self) -> dict[str, float]:
        """From before the answer is given until the effect begins."""
        run = await self._runs.get(self._parked.pop(len(self._parked) // 2))
        (question,) = run.questions
        began = time.time()
        await self._runs.answer(question.id, "yes", by="bench")
        return {"took_s": await first_told(self._told, run.id, began) - began}

    async def close(self) -> None:
        await self._stack.aclose()


async def first_told(file: Path, run: str, after: float) -> float:
    while True:
        for line in reversed(file.read_text().splitlines()):
            name, at, _ = line.split()
            if name == run and float(at) >= after:
                return float(at)
        await asyncio.sleep(0.001)


async def serve(dsn: str, told: Path) -> None:
    told.touch()
    async with ControlDatabase(dsn) as database:
        side = Side(database, told)
        while line := await asyncio.to_thread(sys.stdin.readline):
            order = json.loads(line)
            print(json.dumps(await getattr(side, order.pop("do"))(**order)), flush=True)
        await side.close()


async def work(dsn: str, told: Path) -> None:
    async with ControlDatabase(dsn, checked=False) as database:
        worker = asyncio.create_task(Worker(database, NullHands(told.parent, told)).run())
        await database.fetch("select 1")
        await asyncio.sleep(READY_S)
        print("{}", flush=True)
        await worker


def main() -> None:
    dsn, told = sys.argv[1], Path(sys.argv[2])
    if sys.argv[3:] == ["work"]:
        asyncio.run(work(dsn, told))
    else:
        asyncio.run(serve(dsn, told))


if __name__ == "__main__":
    main()
