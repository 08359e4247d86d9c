"""The settings of brains in memory, for tests of what stands on them."""

from __future__ import annotations

from tenure.work.thoughts import BrainSettings


class FakeBrains:
    """See `tenure.server.services.Brains`."""

    def __init__(self) -> None:
        self._kept: dict[str, BrainSettings] = {}

    async def get(self, agent: str) -> BrainSettings | None:
        return self._kept.get(agent)

    async def set(self, agent: str, settings: BrainSettings) -> None:
        self._kept[agent] = settings
