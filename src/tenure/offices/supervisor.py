"""Watches the offices that are awake, and acts as `supervision` decides.

It looks at those only whose doorway is open: one that sleeps costs it nothing. What it asks at a door counts as nobody's use.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path

from tenure.errors import NotFound, TenureError
from tenure.offices.history import History, What
from tenure.offices.office import Office
from tenure.offices.rebuilder import Leave
from tenure.offices.sandboxes.base import SandboxDriver, SandboxState
from tenure.offices.supervision import Act, Action, Look, Patience, Verdict, decide

LOOKS_AT_ONCE = 32
LOOKS_KEPT = 240
ACTS_KEPT = 40
LINES_MAX = 500
"""`officed` serves 512 connections at a time: with that many open none may be left for a question."""
TASKS_SUSPICIOUS = 1.8
"""Host tasks per process that an office may have; gVisor keeps about 2.2 for each. From there on it is asked inside."""
HOST_PRESSURE = 50.0
"""Percent of the last ten seconds in which something waited for a processor."""
LOOP_LAG_S = 1.0
LEAST_OF_MEMORY = 0.25
"""A process that holds less of the limit is not why the office is at it."""
KILL_TIMEOUT_S = 60.0
GROUP_SHARE_PERCENT = 70
ROOM_PROBE = ("/bin/bash", "-c", "(:)")
COUNT_SCRIPT = "all=(/proc/[0-9]*); echo ${#all[@]}"
# Nothing in it starts a process: there is no room for one. The group is stopped first, so that it cannot fork away.
KILL_SCRIPT = """\
declare -A count; total=0; most=0; group=0
for file in /proc/[0-9]*/stat; do
    { read -r line < "$file"; } 2>/dev/null || continue
    set -- ${line##*) }
    [ "$3" -gt 1 ] 2>/dev/null && [ "$3" != "$$" ] || continue
    total=$((total + 1)); count[$3]=$((${count[$3]:-0} + 1))
    [ "${count[$3]}" -gt "$most" ] && { most=${count[$3]}; group=$3; }
done
[ "$total" -gt 0 ] && [ $((most * 100)) -ge $((total * $0)) ] || { echo "none $most $total"; exit 1; }
kill -STOP -- -"$group"; kill -KILL -- -"$group"
echo "$group $most $total"
"""

logger = logging.getLogger(__name__)


class _Watched:
    """What is remembered of one office while it is awake."""

    def __init__(self, office: Office) -> None:
        self.office = office
        self.looks: deque[Look] = deque(maxlen=LOOKS_KEPT)
        self.acts: deque[Act] = deque(maxlen=ACTS_KEPT)
        self.acting: asyncio.Task[None] | None = None


class Supervisor:
    """`look` is to be called every few seconds; it returns when all were looked at, while what is done goes on."""

    def __init__(
        self,
        offices: Callable[[], Iterable[Office]],
        sandboxes: SandboxDriver,
        history: History,
        leave: Leave,
        give_up: Callable[[Office, str], Awaitable[None]],
        *,
        patience: Patience | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`give_up` puts an office to rest until a person acts."""
        self._offices, self._sandboxes, self._history = offices, sandboxes, history
        self._leave, self._give_up = leave, give_up
        self._patience, self._clock = patience or Patience(), clock
        self._watched: dict[str, _Watched] = {}
        self._slots = asyncio.Semaphore(LOOKS_AT_ONCE)

    async def look(self) -> None:
        """At every office that is awake, once."""
        awake = {office.record.name: office for office in self._offices() if office.is_watchable}
        for name in list(self._watched):
            if self._watched[name].office is not awake.get(name) and not self._watched[name].acts:
                del self._watched[name]
        host_busy = await _host_is_busy()
        await asyncio.gather(*(self._look_at(office, host_busy) for office in awake.values()))

    async def close(self) -> None:
        tasks = [watched.acting for watched in self._watched.values() if watched.acting is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _look_at(self, office: Office, host_busy: bool) -> None:
        watched = self._watched.get(office.record.name)
        if watched is None or watched.office is not office:
            watched = self._watched[office.record.name] = _Watched(office)
        if watched.acting is not None and not watched.acting.done():
            return
        async with self._slots:
            seen = await self._see(office, host_busy)
        if not office.is_watchable:  # it went to rest, or is being replaced, meanwhile: what was seen is of no state
            watched.looks.clear()
            return
        watched.looks.append(seen)
        verdict = decide(tuple(watched.looks), tuple(watched.acts), self._clock(), self._patience)
        if verdict.action is not Action.NOTHING:
            watched.acts.append(Act(self._clock(), verdict.action))
            watched.acting = asyncio.create_task(self._act(watched, verdict))

    # --- looking -------------------------------------------------------------------------------------------------------
    async def _see(self, office: Office, host_busy: bool) -> Look:
        name, limits = office.record.name, office.record.limits.for_sandbox()
        state = await self._sandboxes.state(name)
        if state is not SandboxState.RUNNING:
            return Look(self._clock(), state, host_busy=host_busy)
        try:
            usage = await self._sandboxes.usage(name)
        except NotFound:
            return Look(self._clock(), SandboxState.DEAD, host_busy=host_busy)
        answered = await self._ask(office)
        suspicious = usage.processes >= TASKS_SUSPICIOUS * limits.processes_max
        return Look(
            at=self._clock(),
            sandbox=await self._sandboxes.state(name),
            answered=answered,
            cpu_s=usage.cpu_s,
            cpus=limits.cpus,
            memory=usage.memory_bytes / limits.memory_bytes,
            no_room=bool(answered and suspicious) and await self._has_no_room(office),
            host_busy=host_busy,
        )

    async def _ask(self, office: Office) -> bool | None:
        try:
            await office.door.ping(self._patience.answer_s)
        except TenureError:
            return None if office.door.lines >= LINES_MAX else False
        return True

    async def _has_no_room(self, office: Office) -> bool:
        """Whether it is at its limit, and a program of the agent's cannot start another."""
        door, limit = office.door, office.record.limits.processes
        try:
            async with asyncio.timeout(KILL_TIMEOUT_S):
                counted = await door.run(
                    ("/bin/bash", "-c", COUNT_SCRIPT), env={}, user="root", timeout_s=KILL_TIMEOUT_S, counts=False
                )
                if int(counted.stdout or b"0") < limit - limit // 50 - 2:
                    return False
                tried = await door.run(
                    ROOM_PROBE, env={}, user="agent", timeout_s=self._patience.answer_s, counts=False
                )
                return tried.exit_code != 0 or tried.timed_out
        except (TenureError, TimeoutError, ValueError):
            return False  # not known: nothing is ended for that

    # --- acting --------------------------------------------------------------------------------------------------------
    async def _act(self, watched: _Watched, verdict: Verdict) -> None:
        office, name = watched.office, watched.office.record.name
        try:
            await self._do(office, verdict)
        except TenureError as error:
            logger.warning("%s of %s: %s", verdict.action, name, error)
            await self._history.record(name, What.STILL_FAILS, f"{verdict.action}: {error.message}")
        except Exception:
            logger.exception("%s of %s", verdict.action, name)
        finally:
            if verdict.action in (Action.RESTART, Action.CLEAN_UP, Action.GIVE_UP, Action.KILL_GROUP):
                watched.looks.clear()

    async def _do(self, office: Office, verdict: Verdict) -> None:
        name, reason = office.record.name, verdict.reason
        match verdict.action:
            case Action.RECONNECT:
                office.door.drop_idle()
                await self._history.record(name, What.RECONNECTED, reason)
            case Action.KILL_LARGEST:
                least_bytes = int(office.record.limits.for_sandbox().memory_bytes * LEAST_OF_MEMORY)
                held = await self._sandboxes.kill_largest(name, least_bytes=least_bytes)
                what = "no process holds much of it" if held is None else f"ended the one that held {held >> 20} MiB"
                await self._history.record(name, What.KILLED, f"{reason}: {what}", {"held_bytes": held})
            case Action.KILL_GROUP:
                await self._kill_group(office, reason)
            case Action.RESTART:
                # What was decided on is some moments old: a last look, since nothing brings back what a restart ends.
                if not office.is_watchable or await self._ask(office):
                    return
                await self._history.record(name, What.RESTARTED, reason)
                await office.restart()
            case Action.CLEAN_UP:
                if await office.clean_up_dead():
                    await self._history.record(name, What.DIED, f"{reason}; its next use starts it again")
            case Action.GIVE_UP:
                await self._give_up(office, reason)
            case _:
                event = await self._history.record(name, What.ASKED, reason)
                if event is not None:
                    await self._leave(
                        name,
                        f"silent-{event.id}",
                        f"The office of {name} should be looked at",
                        f"{reason}. Nothing was ended. `tenure sleep {name}` ends what runs in it; its next use starts it anew.",
                    )

    async def _kill_group(self, office: Office, reason: str) -> None:
        argv = ("/bin/bash", "-c", KILL_SCRIPT, str(GROUP_SHARE_PERCENT))
        done = await office.door.run(argv, env={}, user="root", timeout_s=KILL_TIMEOUT_S, counts=False)
        group, most, total = [*done.stdout.decode("utf-8", "replace").split(), "?", "?", "?"][:3]
        if done.exit_code:
            what = f"of {total} processes no group has most ({most})"
        else:
            what = f"ended group {group}, {most} of {total} processes"
        evidence = {"group": group, "processes": most, "of": total, "exit_code": done.exit_code}
        await self._history.record(office.record.name, What.KILLED, f"{reason}: {what}", evidence)


async def _host_is_busy() -> bool:
    """Whether the machine has more to do than it can, so that silence says little; told by the kernel, and by how late we are
    ourselves."""
    began = time.monotonic()
    await asyncio.sleep(0.05)
    if time.monotonic() - began > LOOP_LAG_S:
        return True
    with contextlib.suppress(OSError, ValueError, IndexError):
        some = Path("/proc/pressure/cpu").read_text().splitlines()[0]
        return float(some.partition("avg10=")[2].split()[0]) >= HOST_PRESSURE
    return os.getloadavg()[0] > 2 * (os.cpu_count() or 1)
