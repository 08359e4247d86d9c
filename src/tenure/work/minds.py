"""Who thinks, and with what: given to a worker, so that tests can give it scripted ones."""

from __future__ import annotations

from typing import Protocol

from tenure.brains.base import Program, Thinker
from tenure.errors import UsageError
from tenure.work.thoughts import BrainSettings
from tenure.work.toolbox import Toolbox


class Minds(Protocol):
    def thinker(self, settings: BrainSettings) -> Thinker:
        """Raises `UsageError` when there is none of this name."""
        ...

    def program(self, settings: BrainSettings) -> Program:
        """Raises as `thinker`."""
        ...

    @property
    def tools(self) -> Toolbox: ...


class RegisteredMinds:
    """Those of `tenure.brains.registry`, which is imported when a run needs one: most need none."""

    def thinker(self, settings: BrainSettings) -> Thinker:
        from tenure.brains.registry import thinker_of

        if (found := thinker_of(settings)) is None:
            raise UsageError(f"{settings.brain} is a program: it does not think turn by turn.")
        return found

    def program(self, settings: BrainSettings) -> Program:
        from tenure.brains.registry import program_of

        if (found := program_of(settings)) is None:
            raise UsageError(f"{settings.brain} thinks: it is no program.")
        return found

    @property
    def tools(self) -> Toolbox:
        from tenure.brains.tools import OfficeTools

        return OfficeTools()
