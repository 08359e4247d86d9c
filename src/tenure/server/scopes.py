"""What our ASGI layers leave in a request's scope for those inside."""

from __future__ import annotations

from starlette.types import Scope

from tenure.identity.authorize import Principal

PRINCIPAL_KEY = "tenure.principal"
DOOR_KEY = "tenure.door"
"""Set by an office's listener: the request came through that office's door, whatever token it shows."""


def principal_of(scope: Scope) -> Principal | None:
    """Who asks; None before authentication, and for the few public addresses."""
    found = scope.get(PRINCIPAL_KEY)
    return found if isinstance(found, Principal) else None
