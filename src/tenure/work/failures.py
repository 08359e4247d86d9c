"""What went wrong, as data: the class decides which rungs of the ladder can help."""

from __future__ import annotations

from enum import StrEnum

from pydantic import BaseModel, ConfigDict, Field

from tenure import errors
from tenure.errors import TenureError

MESSAGE_CHARS_MAX = 2000
EVIDENCE_BYTES_MAX = 8192
"""Of what a command printed: the last part, where errors stand."""
_DISK_FULL_SQLSTATE = "53100"
_DISK_FULL_TEXT = "No space left on device"


class FailureClass(StrEnum):
    COMMAND = "command"
    """It ran and said no: an exit code, a missing file."""
    TIMEOUT = "timeout"
    VERIFICATION = "verification"
    """It ran and said yes, and a check says no."""
    DATABASE = "database"
    LOST = "lost"
    """Started, and nobody knows how it ended."""
    DOOR = "door"
    SANDBOX = "sandbox"
    AUTHENTICATION = "authentication"
    DISK_FULL = "disk_full"
    USAGE = "usage"
    """The request itself is wrong: repeating it cannot help."""
    MODEL = "model"
    """The brain's provider does not answer as it should: overloaded, limited, unreachable, or what it says makes no sense."""
    CONTEXT = "context"
    """The conversation is too long for the model."""
    STUCK = "stuck"
    """The brain does the same over and over, or gets nowhere."""
    BUDGET = "budget"
    """What the run may cost is spent."""
    DENIED = "denied"
    """A person said no."""
    INTERNAL = "internal"


class Failure(BaseModel):
    """`evidence` is what a person or a model needs to judge it: the last output, the check that failed."""

    model_config = ConfigDict(frozen=True)

    kind: FailureClass
    message: str
    evidence: str = ""
    exit_code: int | None = Field(default=None)
    retry_after_s: float | None = Field(default=None, ge=0)
    """How long whoever failed asked to be left alone."""


def tail(text: str, bytes_max: int = EVIDENCE_BYTES_MAX) -> str:
    """The last `bytes_max` bytes of `text`, on a character's border, with a mark where something was cut."""
    raw = text.encode("utf-8", "replace")
    if len(raw) <= bytes_max:
        return text
    return "[…] " + raw[-bytes_max:].decode("utf-8", "ignore")


def failure_of(error: Exception, evidence: str = "") -> Failure:
    """The failure that an exception stands for."""
    message = error.message if isinstance(error, TenureError) else f"{type(error).__name__}: {error}"
    wait_s = error.retry_after_s if isinstance(error, errors.ModelError) else None
    return Failure(
        kind=_class_of(error), message=message[:MESSAGE_CHARS_MAX], evidence=tail(evidence), retry_after_s=wait_s
    )


def is_definite(error: Exception) -> bool:
    """Whether the effect surely did not happen: then a new attempt is safe. Otherwise the same key is asked again."""
    if isinstance(error, errors.DatabaseError) and error.retryable:
        return False  # the connection broke: the transaction may have been committed
    refused = (errors.UsageError, errors.NotFound, errors.Forbidden, errors.Unauthenticated, errors.DatabaseError)
    return isinstance(error, (*refused, errors.DiskFull, errors.AlreadyExists, errors.Conflict))


def says_disk_full(output: str) -> bool:
    """Whether a failed command complained of a full disk."""
    return _DISK_FULL_TEXT in output


def _class_of(error: Exception) -> FailureClass:
    match error:
        case errors.DiskFull():
            return FailureClass.DISK_FULL
        case errors.DatabaseError():
            full = error.details.get("sqlstate") == _DISK_FULL_SQLSTATE or _DISK_FULL_TEXT in error.message
            return FailureClass.DISK_FULL if full else FailureClass.DATABASE
        case errors.Unauthenticated() | errors.Forbidden() | errors.EgressDenied():
            return FailureClass.AUTHENTICATION
        case errors.CommandTimeout():
            return FailureClass.TIMEOUT
        case errors.NotFound():
            return FailureClass.COMMAND
        case errors.UsageError() | errors.Conflict() | errors.AlreadyExists():
            return FailureClass.USAGE
        case errors.SandboxError() | errors.VolumeError():
            return FailureClass.SANDBOX
        case errors.DoorError():
            return FailureClass.DOOR
        case errors.ContextTooLong():
            return FailureClass.CONTEXT
        case errors.ModelError():
            return FailureClass.MODEL
        case _:
            return FailureClass.INTERNAL
