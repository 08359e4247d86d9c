"""DBOS's part of `durable.py`, by its own library in an environment of its own: one order a line, as `tenure_side.py`.

Each order is measured as DBOS documents it: workflows and steps as decorated functions, on PostgreSQL with LISTEN/NOTIFY. With
`work` as its third argument it only recovers what a process of the same executor left, as DBOS does at a start."""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

from dbos import DBOS

from memory import pss_mib

TOLD = Path(sys.argv[2])
WAIT_S, STARTED_AT_ONCE = 0.2, 8
FOREVER_S = 86400.0


def tell() -> None:
    with TOLD.open("ab", buffering=0) as opened:
        opened.write(f"{DBOS.workflow_id} {time.time():.6f} {os.getpid()}\n".encode())


DBOS(
    config={
        "name": "bench",
        "system_database_url": sys.argv[1],
        "executor_id": "one",
        "application_version": "1",
        "log_level": "ERROR",
        "notification_listener_polling_interval_sec": 0.01,
    }
)


@DBOS.step()
def nothing(number: int) -> int:
    return number


@DBOS.step()
async def nothing_async(number: int) -> int:
    return number


@DBOS.step()
def slow() -> None:
    tell()
    time.sleep(WAIT_S)


@DBOS.step()
async def tell_async() -> None:
    tell()


@DBOS.workflow()
def row(count: int) -> None:
    for number in range(count):
        nothing(number)


@DBOS.workflow()
async def row_async(count: int) -> None:
    for number in range(count):
        await nothing_async(number)


@DBOS.workflow()
async def fan(count: int) -> None:
    await asyncio.gather(*(nothing_async(number) for number in range(count)))


@DBOS.workflow()
def slow_row(count: int) -> None:
    for _ in range(count):
        slow()


@DBOS.workflow()
async def parked() -> None:
    await DBOS.recv_async(timeout_seconds=FOREVER_S)
    await tell_async()


class Side:
    def __init__(self) -> None:
        self._parked: list[str] = []

    async def steps(self, count: int) -> dict[str, float]:
        """The faster of its two kinds of workflow."""
        began = time.perf_counter()
        await asyncio.to_thread(row, count)
        middle = time.perf_counter()
        await row_async(count)
        return {"took_s": min(middle - began, time.perf_counter() - middle)}

    async def parallel(self, count: int) -> dict[str, float]:
        began = time.perf_counter()
        await fan(count)
        return {"took_s": time.perf_counter() - began}

    async def runs(self, count: int) -> dict[str, float]:
        """Started in the background, and then waited for."""
        began = time.perf_counter()
        handles = [await asyncio.to_thread(DBOS.start_workflow, row, 1) for _ in range(count)]
        started = time.perf_counter()
        await asyncio.to_thread(lambda: [handle.get_result() for handle in handles])
        return {"spawn_s": started - began, "execute_s": time.perf_counter() - started}

    async def begin_slow(self, count: int, steps: int) -> dict[str, list[str]]:
        handles = [await asyncio.to_thread(DBOS.start_workflow, slow_row, steps) for _ in range(count)]
        return {"runs": [handle.workflow_id for handle in handles]}

    async def park(self, count: int) -> dict[str, float]:
        before_mib, began, slots = pss_mib(), time.perf_counter(), asyncio.Semaphore(STARTED_AT_ONCE)

        async def one() -> str:
            async with slots:
                return (await DBOS.start_workflow_async(parked)).workflow_id

        self._parked = list(await asyncio.gather(*(one() for _ in range(count))))
        return {"took_s": time.perf_counter() - began, "before_mib": before_mib, "after_mib": pss_mib()}

    async def wake(self) -> dict[str, float]:
        workflow = self._parked.pop(len(self._parked) // 2)
        began = time.time()
        await DBOS.send_async(workflow, "yes")
        while True:
            for line in reversed(TOLD.read_text().splitlines()):
                name, at, _ = line.split()
                if name == workflow and float(at) >= began:
                    return {"took_s": float(at) - began}
            await asyncio.sleep(0.001)


async def serve() -> None:
    TOLD.touch()
    DBOS.launch()
    side = Side()
    while line := await asyncio.to_thread(sys.stdin.readline):
        order: dict[str, Any] = json.loads(line)
        print(json.dumps(await getattr(side, order.pop("do"))(**order)), flush=True)


async def work() -> None:
    DBOS.launch()
    await asyncio.Event().wait()


asyncio.run(work() if sys.argv[3:] == ["work"] else serve())
os._exit(0)  # without waiting for workflows that are parked
