"""The one decision point that every entry passes: API, office API, object storage, egress, SSH, work.

For now the local owner may do everything, the worker acts for the owner, and an office may use only its own things.
Real policies will go in here without touching callers, so callers name actions and resources as those policies will.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from tenure.errors import Forbidden


class PrincipalKind(StrEnum):
    OWNER = "owner"
    WORKER = "worker"
    OFFICE = "office"


@dataclass(frozen=True)
class Principal:
    """Who asks: known by the token that they showed, or by the door that the call came through."""

    kind: PrincipalKind
    name: str = ""
    """For an office the agent's name; empty otherwise."""

    def __str__(self) -> str:
        return f"{self.kind}:{self.name}" if self.name else str(self.kind)


def principal_from(text: str) -> Principal:
    """The inverse of `str(principal)`. Raises `ValueError`."""
    kind, _, name = text.partition(":")
    return Principal(PrincipalKind(kind), name)


@dataclass(frozen=True)
class Resource:
    """What is asked for: `kind` is a noun ("agent", "command", "file", "run", "database", "object", "egress", "message",
    "ssh-key", "server"), `owner` the agent that it belongs to (empty: the installation), `name` the thing itself."""

    kind: str
    owner: str = ""
    name: str = ""
    granted: frozenset[str] = frozenset()
    """What whoever asks may do with it though it is not theirs (`tenure.identity.grants`)."""

    def __str__(self) -> str:
        return "/".join(part for part in (self.kind, self.owner, self.name) if part)


OFFICE_ACTIONS = frozenset(
    {
        "agent:read",
        "agent:lease",
        "database:connect",
        "databases:list",
        "object:read",
        "object:write",
        "object:delete",
        "object:list",
        "bucket:configure",
        "buckets:list",
        "egress:connect",
        "message:create",
        "run:read",
        "tool:use",
        "work:read",
        "work:tell",
    }
)
"""What an office may do with its own things."""


def is_allowed(principal: Principal, action: str, resource: Resource) -> bool:
    """The decision itself. Pure."""
    if principal.kind in (PrincipalKind.OWNER, PrincipalKind.WORKER):
        return True
    if principal.name == "":
        return False
    return action in resource.granted or (action in OFFICE_ACTIONS and resource.owner == principal.name)


def authorize(principal: Principal, action: str, resource: Resource) -> None:
    """Returns when `principal` may do `action` ("noun:verb") on `resource`. Raises `Forbidden`, which says what."""
    if not is_allowed(principal, action, resource):
        raise Forbidden(
            f"{principal} may not {action} on {resource}.",
            hint="An office may use only its own database, objects, messages and runs, and what the owner granted it.",
        )
