"""The contract of a tool: a name, words for a model, a model of its arguments, and what it does."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from pydantic import BaseModel, ConfigDict

from tenure.brains.tools.schema import schema_of
from tenure.work.hands import Hands
from tenure.work.thoughts import CallResult
from tenure.work.toolbox import CallOrder, ToolSpec


class Arguments(BaseModel):
    """Of a tool. Every field has a description, and a default unless it is needed; text, numbers, booleans, choices and lists
    of text only, which every provider's dialect of tools takes."""

    model_config = ConfigDict(frozen=True, extra="forbid")


A = TypeVar("A", bound=Arguments)


@dataclass(frozen=True)
class Call:
    """One call: where it acts, and by which key."""

    hands: Hands
    order: CallOrder

    @property
    def agent(self) -> str:
        return self.order.agent

    @property
    def key(self) -> str:
        return self.order.key


@dataclass(frozen=True)
class Tool(Generic[A]):
    """`act` carries a call out. By the same key it finds out what the first call did and does not do it again. What the brain
    can mend it returns, or raises as `Refused`; an office that fails raises `Hands`' errors, after which the call may be
    made again by the same key. `reads`: it changes nothing, so planning may use it and it may run again."""

    name: str
    description: str
    arguments: type[A]
    act: Callable[[Call, A], Awaitable[CallResult]]
    reads: bool = False

    @property
    def spec(self) -> ToolSpec:
        return ToolSpec(self.name, self.description, self.parameters)

    @property
    def parameters(self) -> dict[str, Any]:
        """A JSON schema of an object, without references."""
        return schema_of(self.arguments)


class Refused(Exception):
    """The call cannot be carried out as it is; the text says how to mend it."""


def done(output: str) -> CallResult:
    return CallResult(ok=True, output=output)


def failed(output: str) -> CallResult:
    return CallResult(ok=False, output=output)


def unverified(output: str) -> CallResult:
    """It was begun, and nobody knows how it ended."""
    return CallResult(ok=False, output=output, unverified=True)
