"""What the engine needs of the tools that a brain may use in its agent's office; `tenure.brains.tools` has them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from pydantic import JsonValue

from tenure.work.effects import Blocked
from tenure.work.hands import Hands
from tenure.work.thoughts import CallResult, Purpose


@dataclass(frozen=True)
class ToolSpec:
    """A tool as a brain sees it. `parameters` is a JSON schema of an object."""

    name: str
    description: str
    parameters: Mapping[str, Any]


@dataclass(frozen=True)
class CallOrder:
    """One call, by its idempotency key: called again with the same key, it is asked for and not repeated."""

    agent: str
    run_id: str
    node: str
    key: str
    tool: str
    arguments: Mapping[str, JsonValue]
    fresh: bool
    """False: it may have been begun under this key, and interrupted."""


class Toolbox(Protocol):
    def specs(self, purpose: Purpose) -> tuple[ToolSpec, ...]:
        """Those that may be used for it: planning only looks."""
        ...

    async def call(self, hands: Hands, order: CallOrder) -> CallResult | Blocked:
        """What came of it: also an unknown tool, arguments that do not fit, a command that failed are results, in words that
        help the brain. An effect that was begun, was interrupted, and cannot be asked for is `unverified`. `Blocked`: the
        office failed, ask again by the same key. Raises only `LeaseLost`."""
        ...
