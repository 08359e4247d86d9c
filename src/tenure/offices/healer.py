"""Carries out what `healing` chooses for an office that does not boot, and remembers for which a person was asked."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tenure.errors import AlreadyExists, NotFound, OfficeBroken, SandboxError, TenureError
from tenure.offices import mending
from tenure.offices.boot import Failure, Note, Stage
from tenure.offices.clones import renew_generation
from tenure.offices.healing import Case, Choice, Lately, Step, candidates, next_step
from tenure.offices.history import History, What
from tenure.offices.models import SnapshotRecord
from tenure.offices.office import Office, OfficeParts
from tenure.offices.rebuilder import Leave, Rebuilder
from tenure.offices.rest import Tier
from tenure.offices.snapshots import OpenRuns, Snapshots
from tenure.offices.trials import Trials

HISTORY_READ = 200
STEPS_MAX = 20
"""Far more than any way through `next_step` has."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class GivenUp:
    """An office for which a person was asked. While its `cause` is the same nothing is tried."""

    stage: Stage
    reason: str
    cause: str


class _Episode:
    """One illness of one office, from the failure to its end."""

    def __init__(self, office: Office, failure: Failure, *, database_only: bool) -> None:
        self.office, self.failure, self.database_only = office, failure, database_only
        self.tried: list[Step] = []
        self.host_sound: bool | None = None
        self.left: list[SnapshotRecord] | None = None
        self.replaced = ""
        """What a person should know about lost work; empty when none is lost."""

    @property
    def name(self) -> str:
        return self.office.record.name


class Healer:
    """Of all offices. See `Health` in `tenure.offices.office` for what offices ask of it."""

    def __init__(
        self,
        parts: OfficeParts,
        snapshots: Snapshots,
        trials: Trials,
        rebuilder: Rebuilder,
        history: History,
        open_runs: OpenRuns,
        leave: Leave,
    ) -> None:
        self._parts, self._snapshots, self._trials, self._rebuilder = parts, snapshots, trials, rebuilder
        self._history, self._open_runs, self._leave = history, open_runs, leave
        self._given_up: dict[str, GivenUp] = {}
        self._episodes: dict[str, asyncio.Task[None]] = {}

    # --- what offices ask ----------------------------------------------------------------------------------------------
    async def permit(self, office: Office) -> None:
        """Returns when the office may be tried. Raises `OfficeBroken` while a person is needed."""
        given_up = self._given_up.get(office.record.name)
        if given_up is None or given_up.stage is Stage.DATABASE:
            return
        await self._look_again(office, given_up)

    async def permit_database(self, office: Office) -> None:
        """The same for its database alone: an office whose database is broken can still be used otherwise."""
        given_up = self._given_up.get(office.record.name)
        if given_up is not None and given_up.stage is Stage.DATABASE:
            await self._look_again(office, given_up)

    async def _look_again(self, office: Office, given_up: GivenUp) -> None:
        if await asyncio.to_thread(self._cause, office) == given_up.cause:
            name = office.record.name
            raise OfficeBroken(
                f"The office of {name} is broken ({given_up.stage}), and a person is needed: {given_up.reason}",
                hint=f"`tenure agent history {name}` says what was tried. When the cause is gone: `tenure wake {name}`.",
            )
        await self.forgive(office.record.name, "what it failed of looks different now")

    def is_given_up(self, name: str) -> bool:
        return name in self._given_up

    async def forgive(self, name: str, why: str) -> None:
        """Somebody acted: everything may be tried again."""
        if self._given_up.pop(name, None) is not None:
            await self._history.record(name, What.CLEARED, why)

    async def heal(self, office: Office, error: TenureError, *, database_only: bool = False) -> None:
        """Returns when the office is awake after all. Raises `OfficeBroken` when a person was asked, else what failed last.
        Callers at the same time share one attempt, which goes on when they are cancelled."""
        name = office.record.name
        task = self._episodes.get(name)
        if task is None:
            episode = _Episode(office, Failure.of(error), database_only=database_only)
            task = asyncio.create_task(self._carry_out(episode, error))
            self._episodes[name] = task
            task.add_done_callback(lambda done: self._over(name, done))
        await asyncio.shield(task)

    async def give_up(self, office: Office, reason: str) -> None:
        """Puts an office to rest that cannot be kept well, and asks a person."""
        failure = Failure(Stage.DOOR, reason, {})
        with contextlib.suppress(TenureError):
            await office.rest(Tier.STOPPED)
        episode = _Episode(office, failure, database_only=False)
        await self._ask(episode, Choice(Step.ASK, "restarts do not help"), SandboxError(reason))

    def database_failed(self, office: Office, error: TenureError) -> None:
        """Has the database mended in the background: whoever needed it gets the error."""
        if office.record.name not in self._episodes:
            error.details.setdefault("stage", Stage.DATABASE.value)
            task = asyncio.create_task(self.heal(office, error, database_only=True))
            task.add_done_callback(_retrieve)

    async def noted(self, name: str, notes: Sequence[Note]) -> None:
        """What a boot had to do beside booting."""
        for note in notes:
            await self._history.record(name, note.what, note.reason, note.evidence)

    def _over(self, name: str, task: asyncio.Task[None]) -> None:
        self._episodes.pop(name, None)
        _retrieve(task)

    # --- the life of a server -------------------------------------------------------------------------------------------
    async def load(self) -> None:
        """For a server that starts: for whom a person was asked before."""
        for name, event in (await self._history.last((What.GAVE_UP, What.CLEARED))).items():
            if event.what == What.GAVE_UP:
                stage, cause = str(event.evidence.get("stage")), str(event.evidence.get("cause"))
                known = Stage(stage) if stage in set(Stage) else Stage.SANDBOX
                self._given_up[name] = GivenUp(known, event.reason, cause)

    def forget(self, name: str) -> None:
        """For an agent that is deleted."""
        self._given_up.pop(name, None)

    async def close(self) -> None:
        tasks = list(self._episodes.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    # --- one episode -----------------------------------------------------------------------------------------------------
    async def _carry_out(self, episode: _Episode, error: TenureError) -> None:
        failure = episode.failure
        await self._history.record(
            episode.name,
            What.FAILED,
            f"{failure.stage}: {failure.message}",
            {"stage": failure.stage, **failure.evidence},
        )
        for _ in range(STEPS_MAX):
            choice = next_step(await self._case(episode))
            if choice.step is Step.LEAVE:
                raise error
            if choice.step is Step.ASK:
                raise await self._ask(episode, choice, error)
            episode.tried.append(choice.step)
            try:
                if await self._do(episode, choice):
                    await self._recovered(episode)
                    return
            except TenureError as again:
                if "stage" in again.details:
                    error, episode.failure = again, Failure.of(again)
                told = f"after {choice.step}: {again.message}"
                await self._history.record(episode.name, What.STILL_FAILS, told, _plainly(Failure.of(again)))
        raise error

    async def _case(self, episode: _Episode) -> Case:
        lately = Lately()
        with contextlib.suppress(TenureError):
            lately = Lately.of(await self._history.of(episode.name, HISTORY_READ), datetime.now(UTC))
        if episode.left is None:
            episode.left = candidates(await self._snapshots.list(episode.name))
        at_work = any(state != "parked" for _, state, _ in await self._open_runs(episode.name))
        return Case(
            failure=episode.failure,
            tried=tuple(episode.tried),
            host_sound=episode.host_sound,
            candidates=len(episode.left),
            at_work=at_work,
            has_volume=await self._has_volume(episode),
            replacements=lately.replacements,
            episodes=lately.episodes,
        )

    async def _has_volume(self, episode: _Episode) -> bool:
        """Only a mounted pool can lack a volume."""
        if episode.failure.stage is not Stage.LOCATE or episode.failure.code != NotFound.code:
            return True
        return await self._parts.volumes.exists(episode.office.volume)

    async def _do(self, episode: _Episode, choice: Choice) -> bool:
        """Whether the office is well now. Raises what failed."""
        match choice.step:
            case Step.AGAIN:
                await self._attempt(episode)
                await self._history.record(episode.name, What.RETRIED, choice.reason)
                return True
            case Step.MEND:
                if not await self._mend(episode, choice):
                    return False
                await self._attempt(episode)
                return True
            case Step.TEST:
                await self._test_host(episode, choice)
                return False
            case Step.RESTORE:
                return await self._restore(episode, choice)
            case _:
                rebuilt = await self._rebuilder.rebuild(episode.name, choice.reason)
                episode.replaced = (
                    f"Its root is new, of the image; home, database and objects are as they were. What was there before is "
                    f"the snapshot {rebuilt.before.id}."
                )
                await self._attempt(episode)
                return True

    async def _attempt(self, episode: _Episode) -> None:
        if not episode.database_only:
            await episode.office.try_ready()
        if episode.failure.stage is Stage.DATABASE:
            try:
                await episode.office.database.ensure_started()
            except TenureError as error:
                error.details.setdefault("stage", Stage.DATABASE.value)
                raise

    async def _mend(self, episode: _Episode, choice: Choice) -> bool:
        office, image = episode.office, mending.image_of(self._parts.settings, episode.office.record)
        mended: list[str] = []
        try:
            if not episode.database_only:
                async with office.vacated():
                    root, of_image = office.volume / "rootfs", image / "rootfs"
                    mended += await asyncio.to_thread(mending.lend_missing, root, of_image, changed=True)
                    await asyncio.to_thread(renew_generation, office.volume)
            if episode.failure.stage is Stage.DATABASE:
                async with office.database.at_rest():
                    data = office.volume / "postgres"
                    mended += await asyncio.to_thread(mending.mend_database, data, image / "postgres")
        except (TenureError, OSError) as error:
            mended.append(f"not all: {error}")
        await self._history.record(
            episode.name, What.MENDED, "; ".join(mended) or "there was nothing to mend", {"why": choice.reason}
        )
        return bool(mended)

    async def _test_host(self, episode: _Episode, choice: Choice) -> None:
        image = mending.image_of(self._parts.settings, episode.office.record)
        try:
            failure = await self._trials.of(episode.office.record, image.resolve())
        except TenureError as error:
            failure = Failure.of(error)
        episode.host_sound = failure is None
        told = "an office of the plain image boots here" if failure is None else f"{failure.stage}: {failure.message}"
        evidence = {} if failure is None else _plainly(failure)
        await self._history.record(episode.name, What.HOST_TESTED, told, {"why": choice.reason, **evidence})

    async def _restore(self, episode: _Episode, choice: Choice) -> bool:
        assert episode.left
        snapshot, *episode.left = episode.left
        called = f"{snapshot.name or snapshot.id} of {snapshot.created_at:%Y-%m-%d %H:%M:%S}"
        path = await self._snapshots.find(snapshot.id)
        if path is None:
            return False
        failure = await self._trials.of(episode.office.record, path)
        if failure is not None:
            told = f"snapshot {called} does not boot either ({failure.stage}): {failure.message}"
            await self._history.record(episode.name, What.SNAPSHOT_TESTED, told, _plainly(failure))
            return False
        if await self._parts.volumes.exists(episode.office.volume):
            before = (await self._snapshots.restore(episode.name, snapshot.id)).before.id
            kept = f"What was there before is the snapshot {before}."
        else:
            before, kept = None, "Of what was there before nothing was left."
            with contextlib.suppress(AlreadyExists):  # somebody brought it back meanwhile
                await self._snapshots.bring_back(episode.name, snapshot.id)
        evidence = {"snapshot": snapshot.id, "before": before, "why": choice.reason}
        await self._history.record(episode.name, What.RESTORED, f"from snapshot {called}", evidence)
        episode.replaced = f"It is as it was in the snapshot {called}: files, database and objects. {kept}"
        await self._attempt(episode)
        return True

    # --- ends --------------------------------------------------------------------------------------------------------------
    async def _recovered(self, episode: _Episode) -> None:
        how = ", ".join(episode.tried)
        event = await self._history.record(episode.name, What.RECOVERED, f"by: {how}", {"tried": list(episode.tried)})
        if episode.replaced and event is not None:
            await self._tell(
                episode.name,
                f"recovered-{event.id}",
                f"The office of {episode.name} was broken and had to be replaced",
                f"It did not boot ({episode.failure.stage}): {episode.failure.message}\n\n{episode.replaced}\n\n"
                f"`tenure agent history {episode.name}` has every step.",
            )

    async def _ask(self, episode: _Episode, choice: Choice, error: TenureError) -> OfficeBroken:
        name, failure = episode.name, episode.failure
        reason = f"{failure.message} ({choice.reason})"
        cause = await asyncio.to_thread(self._cause, episode.office)
        self._given_up[name] = GivenUp(failure.stage, reason, cause)
        evidence = {**_plainly(failure), "tried": list(episode.tried), "cause": cause}
        event = await self._history.record(name, What.GAVE_UP, reason, evidence)
        await self._tell(
            name,
            f"broken-{event.id if event else cause}",
            f"The office of {name} is broken: {failure.message}"[:200],
            f"Stage: {failure.stage}\nTried: {', '.join(episode.tried) or 'nothing'}\nWhy no more: {choice.reason}\n"
            f"{failure.hint}\n\nNothing more is tried by itself. `tenure agent history {name} --json` has the evidence; "
            f"`tenure wake {name}` tries again, `tenure snapshot list {name}` shows what it could be restored to, and "
            f"`tenure rebuild {name}` gives it a new root.",
        )
        broken = OfficeBroken(
            f"The office of {name} is broken ({failure.stage}), and a person is needed: {reason}",
            hint=failure.hint or f"`tenure agent history {name}` says what was tried.",
            details={"stage": failure.stage.value, "evidence": failure.evidence},
        )
        broken.__cause__ = error
        return broken

    async def _tell(self, name: str, key: str, subject: str, body: str) -> None:
        try:
            await self._leave(name, key, subject, body)
        except TenureError as error:
            logger.warning("a message about %s was not left: %s", name, error)

    def _cause(self, office: Office) -> str:
        """Of everything outside of the office's own processes that decides whether it boots: where this changed, it may."""
        settings, record = self._parts.settings, office.record
        runsc = shutil.which("runsc")
        paths = [
            settings.officed_dir / "officed",
            office.volume,
            office.volume / "postgres",
            settings.images_dir / "current",
        ]
        facts: list[Any] = [_facts(path) for path in paths]
        facts += [_facts(Path(runsc)) if runsc else None, asdict(record.limits)]
        return hashlib.sha256(repr(facts).encode()).hexdigest()[:16]


def _facts(path: Path) -> tuple[int, ...] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    # No times of directories: a boot that fails writes into them.
    return (
        (found.st_dev, found.st_ino)
        if path.is_dir()
        else (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns)
    )


def _plainly(failure: Failure) -> dict[str, Any]:
    return {"stage": failure.stage.value, "message": failure.message, **failure.evidence}


def _retrieve(task: asyncio.Task[None]) -> None:
    """So that an error that nobody waits for is no complaint of the event loop's."""
    if not task.cancelled():
        task.exception()
