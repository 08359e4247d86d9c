"""The `Brains` service: how the agents' brains think. Kept with the agents' rows; a run copies them when it begins."""

from __future__ import annotations

from tenure.offices.store import OfficeStore
from tenure.work.thoughts import BrainSettings


class Brains:
    """See `tenure.server.services.Brains`."""

    def __init__(self, store: OfficeStore) -> None:
        self._store = store

    async def get(self, agent: str) -> BrainSettings | None:
        kept = await self._store.brain(agent)
        return None if kept is None else BrainSettings.model_validate(kept)

    async def set(self, agent: str, settings: BrainSettings) -> None:
        await self._store.set_brain(agent, settings.model_dump(mode="json"))
