"""Rebuilding on request, and installing again afterwards what was installed: jobs in the office that outlive the server."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import asdict
from typing import Any

from tenure.errors import NotFound, TenureError
from tenure.offices.clones import origin_of
from tenure.offices.history import History, OfficeEvent, What
from tenure.offices.mending import image_of
from tenure.offices.office import Office, OfficeParts
from tenure.offices.rebuilding import SETUP_SCRIPT, Rebuilding, Rebuilt, SetUp, recorded_set_up
from tenure.offices.snapshots import Snapshots, to_its_end
from tenure.work.hands import CommandState, CommandStatus

SET_UP_TIMEOUT_S = 3600.0
STATUS_WAIT_S = 25.0
RETRIES_MAX = 20
RETRY_PAUSE_S = 3.0
OUTPUT_CHARS_KEPT = 2000
PACKAGES_SCRIPT = """\
export DEBIAN_FRONTEND=noninteractive
apt-get update -q || exit 1
apt-get install -yq -- "$@" && exit 0
failed=
for package; do apt-get install -yq -- "$package" || failed="$failed $package"; done
[ -z "$failed" ] || { echo "not installed:$failed"; exit 1; }
"""
PIP_SCRIPT = """\
failed=
for package; do python3 -m pip install --no-input --quiet "$package" || failed="$failed $package"; done
[ -z "$failed" ] || { echo "not installed:$failed"; exit 1; }
"""

Leave = Callable[[str, str, str, str], Awaitable[object]]
"""Leaves a message of an agent in the inbox: agent, key, subject, body."""


def jobs_of(set_up: SetUp) -> Iterable[tuple[str, str, tuple[str, ...]]]:
    """(label, user, argv) of what is to be run, in order."""
    if set_up.packages:
        yield "packages", "root", ("/bin/sh", "-c", PACKAGES_SCRIPT, "sh", *set_up.packages)
    if set_up.pip:
        yield "pip", "root", ("/bin/sh", "-c", PIP_SCRIPT, "sh", *set_up.pip)
    if set_up.script:
        yield "script", "agent", ("/bin/bash", f"/{SETUP_SCRIPT}")


class Rebuilder:
    """Of all offices."""

    def __init__(
        self,
        parts: OfficeParts,
        snapshots: Snapshots,
        rebuilding: Rebuilding,
        history: History,
        leave: Leave,
        find_office: Callable[[str], Awaitable[Office]],
    ) -> None:
        self._settings, self._snapshots, self._rebuilding = parts.settings, snapshots, rebuilding
        self._history, self._leave, self._find_office = history, leave, find_office
        self._setting_up: set[asyncio.Task[None]] = set()

    async def rebuild(self, agent: str, reason: str) -> Rebuilt:
        """A new root from the image with the agent's work; goes on when its caller is cancelled. What was there is a snapshot
        first. It wakes if it was awake, or if something is to be installed again, which goes on in the background. Raises
        `NotFound` without agent or volume, `SandboxError` when what was rebuilt would not boot: then all is as it was."""
        await self._find_office(agent)

        async def rebuild() -> Rebuilt:
            async with self._snapshots.replacing(agent) as (office, before):
                image = image_of(self._settings, office.record)
                set_up = await asyncio.to_thread(_recorded, office, image)
                evidence = {"before": before.id, "image": image.name, "set_up": asdict(set_up)}
                await self._history.record(agent, What.REBUILDING, reason, evidence)
                try:
                    await self._rebuilding.replace(office.record, office.volume, before.id)
                except TenureError as error:
                    await self._history.record(agent, What.NOT_REBUILT, error.message, error.details)
                    raise
                await self._history.record(agent, What.REBUILT, f"what was there is snapshot {before.id}", evidence)
            self._begin(agent, before.id, set_up)
            return Rebuilt(await office.view(with_usage=False), before, set_up)

        return await to_its_end(rebuild())

    async def resume(self) -> None:
        """For a server that starts: what a dead one had rebuilt is set up."""
        kinds = (What.REBUILDING, What.REBUILT, What.NOT_REBUILT, What.SET_UP)
        for agent, event in (await self._history.last(kinds)).items():
            if event.what == What.REBUILDING:
                try:
                    office = await self._find_office(agent)
                except NotFound:  # it is being deleted
                    continue
                if origin_of(office.volume) != event.evidence.get("before"):
                    await self._history.record(agent, What.NOT_REBUILT, "the server died before it was in place")
                    continue
                await self._history.record(agent, What.REBUILT, "by a server that died then", event.evidence)
            if event.what in (What.REBUILDING, What.REBUILT):
                self._begin(agent, str(event.evidence.get("before")), _set_up_of(event))

    async def close(self) -> None:
        """The jobs go on in their offices; the next server asks how they ended."""
        for task in self._setting_up:
            task.cancel()
        await asyncio.gather(*self._setting_up, return_exceptions=True)

    def _begin(self, agent: str, key: str, set_up: SetUp) -> None:
        if set_up:
            task = asyncio.create_task(self._set_up(agent, key, set_up))
            self._setting_up.add(task)
            task.add_done_callback(self._setting_up.discard)

    async def _set_up(self, agent: str, key: str, set_up: SetUp) -> None:
        ended: dict[str, Any] = {}
        for label, user, argv in jobs_of(set_up):
            try:
                status = await self._run(agent, f"set-up-{key}-{label}", user, argv)
            except TenureError as error:
                ended[label] = {"error": error.message}
                continue
            ended[label] = {"exit_code": status.exit_code, "output": status.output[-OUTPUT_CHARS_KEPT:]}
        failed = [label for label, how in ended.items() if how.get("exit_code") != 0]
        told = f"{', '.join(failed)} did not end well" if failed else f"{', '.join(ended)} done"
        await self._history.record(agent, What.SET_UP, told, ended)
        if failed:
            await self._leave(
                agent,
                f"set-up-{key}",
                f"After the rebuild of {agent} not everything could be installed again",
                f"{told}. `tenure agent history {agent} --json` has the output. Of before the rebuild there is the snapshot "
                f"{key}. Does its egress allow what the installation needs?",
            )

    async def _run(self, agent: str, key: str, user: str, argv: tuple[str, ...]) -> CommandStatus:
        for left in reversed(range(RETRIES_MAX)):
            try:
                office = await self._find_office(agent)
                door = await office.ready()
                status = await door.start_job(
                    key, argv, env=office.environment, user=user, cwd="/", timeout_s=SET_UP_TIMEOUT_S
                )
                while status.state is CommandState.RUNNING:
                    status = await (await office.ready()).job_status(key, STATUS_WAIT_S)
                return status
            except TenureError as error:
                if not (left and error.retryable):
                    raise
                await asyncio.sleep(RETRY_PAUSE_S)
        raise AssertionError


def _recorded(office: Office, image: Any) -> SetUp:
    try:
        return recorded_set_up(office.volume / "rootfs", image / "rootfs")
    except (TenureError, OSError) as error:
        office.log.write("office", f"what was installed cannot be read: {error}")
        return SetUp()


def _set_up_of(event: OfficeEvent) -> SetUp:
    facts: Mapping[str, Any] = event.evidence.get("set_up") or {}
    return SetUp(tuple(facts.get("packages", ())), tuple(facts.get("pip", ())), bool(facts.get("script")))
