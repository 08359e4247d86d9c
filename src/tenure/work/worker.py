"""The worker: claims runs and drives them, many at once. `python -m tenure.work.worker` is one process of it.

It may be killed at any point: what it held is claimed by another worker when the lease lapses, or at once when whoever
reaped it calls `claims.release_claims`. Leases are renewed by a task of their own, whatever the steps do.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import traceback
from dataclasses import dataclass

from tenure import faultpoints
from tenure.client.hands import HttpHands
from tenure.database.connect import ControlDatabase
from tenure.errors import LeaseLost, ServerUnreachable
from tenure.postgres.control import control_dsn
from tenure.settings import Settings
from tenure.work import claims
from tenure.work import events as e
from tenure.work.claims import LEASE_S, WORK_CHANNEL, Claim
from tenure.work.driver import Driver
from tenure.work.failures import tail
from tenure.work.hands import Hands
from tenure.work.journal import Journal
from tenure.work.lease import Lease, clock_s
from tenure.work.listener import Listener, Subscription
from tenure.work.minds import Minds
from tenure.work.owner import OWNER_CHANNEL

RUNS_MAX = 64
"""Driven at once by one worker; the others stay queued."""
CLAIM_BATCH = 8
POLL_S = 2.0
"""Between two looks at the queue when nobody said anything: for leases that lapsed and suspended runs that are due."""
RENEWALS_PER_LEASE = 3
AWAY_PAUSE_S = 1.0
BUGS_IN_A_ROW_MAX = 3
"""After so many unexpected errors in driving a run, it is parked with the last one as evidence."""
CLEAN_UP_EVERY_S = 3600.0

log = logging.getLogger("tenure.work")


@dataclass(eq=False)
class _Drive:
    claim: Claim
    lease: Lease
    task: asyncio.Task[None]


class Worker:
    """`run` works until it is cancelled; then its claims are given back at once."""

    def __init__(
        self,
        database: ControlDatabase,
        hands: Hands,
        *,
        lease_s: int = LEASE_S,
        runs_max: int = RUNS_MAX,
        worker_id: str | None = None,
        minds: Minds | None = None,
    ) -> None:
        self._database = database
        self._hands = hands
        self._lease_s = lease_s
        self._runs_max = runs_max
        self._minds = minds
        self._id = worker_id or claims.worker_id()
        self._drives: set[_Drive] = set()
        self._freed = asyncio.Event()

    async def run(self) -> None:
        async with Listener(self._database.dsn, WORK_CHANNEL, OWNER_CHANNEL) as listener:
            helpers = [asyncio.create_task(self._renew()), asyncio.create_task(self._clean_up())]
            try:
                with listener.subscribe(WORK_CHANNEL) as queue:
                    await self._claim_for_ever(listener, queue)
            finally:
                await _cancel([*helpers, *(drive.task for drive in self._drives)])
                with contextlib.suppress(ServerUnreachable):
                    await claims.release_claims(self._database, self._id)

    async def _claim_for_ever(self, listener: Listener, queue: Subscription) -> None:
        while True:
            free = min(self._runs_max - len(self._drives), CLAIM_BATCH)
            if free <= 0:
                self._freed.clear()
                await self._freed.wait()
                continue
            try:
                asked_s = clock_s()
                claimed = await claims.claim(self._database, self._id, self._lease_s, free)
            except ServerUnreachable as error:
                log.warning("%s", error)
                await asyncio.sleep(AWAY_PAUSE_S)
                continue
            for claim in claimed:
                self._start(listener, claim, asked_s)
            if len(claimed) < free:
                await queue.wait(POLL_S)

    def _start(self, listener: Listener, claim: Claim, asked_s: float) -> None:
        lease = Lease(claim.run_id, self._lease_s, asked_s)
        task = asyncio.create_task(self._drive(listener, claim, lease), name=claim.run_id)
        drive = _Drive(claim, lease, task)
        self._drives.add(drive)

        def forget(_: asyncio.Task[None]) -> None:
            self._drives.discard(drive)
            self._freed.set()

        task.add_done_callback(forget)

    async def _drive(self, listener: Listener, claim: Claim, lease: Lease) -> None:
        bugs = 0
        with listener.subscribe(OWNER_CHANNEL, claim.run_id) as owner:
            lease.news = owner.event
            while True:
                try:
                    lease.check()
                    await Driver(self._database, self._hands, claim, lease, self._id, self._minds).drive()
                    return
                except LeaseLost as error:
                    log.info("%s", error)
                    return
                except ServerUnreachable as error:
                    log.warning("%s: %s", claim.run_id, error)
                except Exception:
                    log.exception("%s: driving it failed", claim.run_id)
                    bugs += 1
                    if bugs >= BUGS_IN_A_ROW_MAX and await self._park(claim, traceback.format_exc()):
                        return
                await asyncio.sleep(AWAY_PAUSE_S)

    async def _park(self, claim: Claim, evidence: str) -> bool:
        """Rung 8 for an error of Tenure itself. True when nothing is left to do here."""
        question = "Tenure itself failed at this run. Answer `retry` or `fail`."
        try:
            row = await self._database.fetch_one("select agent from runs where id = %s", (claim.run_id,))
            journal = Journal(self._database, claim.run_id, claim.fence)
            await journal.end(e.Parked(question=question, evidence=tail(evidence)), row["agent"] if row else "")
        except LeaseLost:
            return True
        except Exception:
            log.exception("%s: parking it failed", claim.run_id)
            return False
        return True

    async def _renew(self) -> None:
        while True:
            await asyncio.sleep(self._lease_s / RENEWALS_PER_LEASE)
            drives = list(self._drives)
            if not drives:
                continue
            asked_s = clock_s()
            try:
                held = await claims.renew(
                    self._database, self._id, [drive.claim.fence for drive in drives], self._lease_s
                )
            except ServerUnreachable as error:
                log.warning("renewing leases: %s", error)
                continue
            except Exception:
                log.exception("renewing leases")
                continue
            for drive in drives:
                if drive.claim.fence in held:
                    drive.lease.renewed(asked_s, held[drive.claim.fence])
                elif not drive.task.done():
                    drive.lease.lose()
                    drive.task.cancel()

    async def _clean_up(self) -> None:
        while True:
            with contextlib.suppress(ServerUnreachable):
                await claims.clean_up(self._database)
            await asyncio.sleep(CLEAN_UP_EVERY_S)


async def work(dsn: str, hands: Hands, *, lease_s: int = LEASE_S, minds: Minds | None = None) -> None:
    """One worker on the control database at `dsn`, until SIGTERM or SIGINT. Claims of workers of this machine that are dead are
    released first, so that a start after a crash of everything goes on at once."""
    async with ControlDatabase(dsn, checked=False) as database:
        with contextlib.suppress(ServerUnreachable):
            await claims.release_dead_claims(database)
        running = asyncio.create_task(Worker(database, hands, lease_s=lease_s, minds=minds).run())
        loop = asyncio.get_running_loop()
        for stop in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(stop, running.cancel)
        with contextlib.suppress(asyncio.CancelledError):
            await running


async def _cancel(tasks: list[asyncio.Task[None]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def main() -> None:
    """The process that `tenure up` starts: settings from the environment, offices over the server's API."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)
    faultpoints.arm_from_environment()
    settings = Settings.from_environment()

    async def run() -> None:
        async with HttpHands.from_settings(settings) as hands:
            await work(control_dsn(settings), hands)

    asyncio.run(run())


if __name__ == "__main__":
    main()
