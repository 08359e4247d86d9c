"""The contract of a brain: what turns a goal into steps."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from tenure.work.plan import Plan


class Brain(Protocol):
    """Thinks; never acts. What it decides becomes events of the run's journal, and workers act on those."""

    @property
    def name(self) -> str:
        """A short word for listings and the journal, such as "playbook"."""
        ...

    def plan(self, goal: str, inputs: Mapping[str, Any]) -> Plan:
        """The steps towards `goal`. Raises `UsageError` (or a class below it) when there is no plan for these inputs."""
        ...
