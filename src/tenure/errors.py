"""Every error that Tenure raises on purpose.

    TenureError
    ├── UsageError               the request itself is wrong; repeating it cannot help
    │   ├── InvalidName
    │   ├── InvalidArgument
    │   ├── PlaybookError        names file, line and field
    │   └── TooLarge
    ├── NotFound
    ├── AlreadyExists
    ├── Conflict                 the thing is in a state that does not allow this now
    ├── Unauthenticated
    ├── Forbidden
    ├── ServerUnreachable        no server answers at the address
    ├── SetupError               the machine lacks something; `tenure doctor` says what
    ├── CommandTimeout
    ├── DiskFull
    ├── DatabaseError            PostgreSQL refused a statement (message is PostgreSQL's)
    │   └── ConnectionLost
    ├── EgressDenied
    ├── EgressUnreachable
    ├── LeaseLost                this worker no longer holds the run: stop at once
    ├── SandboxError
    │   ├── SandboxDead
    │   ├── OfficeBroken         what could be tried was tried: a person is needed
    │   └── ImageUnusable        a memory image that does not fit or is damaged: boot from the volume instead
    ├── VolumeError
    ├── ArchiveError             an export is damaged, incomplete, of a wrong key, or does not fit this machine
    ├── StorageError             an S3 does not answer, or refuses
    ├── DoorError
    │   └── DoorClosed
    ├── ModelError               a model's provider does not answer, or what it says makes no sense
    │   └── ContextTooLong
    └── InternalError            a bug in Tenure, or a part that broke in a way nobody foresaw

Each has a stable `code` (what programs compare), a `message` (what happened), a `hint` (what a person can try),
`retryable` (whether the same call may succeed later) and an `http_status`. The CLI prints, and the API returns, the
same four things; `from_payload` turns the API's answer into the same class again on the client's side.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar


class TenureError(Exception):
    """Base of all. `hint` may be given per raise; the class's own hint is the fallback."""

    code: ClassVar[str] = "error"
    http_status: ClassVar[int] = 500
    exit_code: ClassVar[int] = 1
    retryable: ClassVar[bool] = False
    default_hint: ClassVar[str] = ""

    def __init__(self, message: str, *, hint: str | None = None, details: dict[str, Any] | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = self.default_hint if hint is None else hint
        self.details: dict[str, Any] = details or {}

    def to_payload(self) -> dict[str, Any]:
        """The JSON shape of the error: `{"error": {code, message, hint, retryable, details}}`."""
        return {
            "error": {
                "code": self.code,
                "message": self.message,
                "hint": self.hint,
                "retryable": self.retryable,
                "details": self.details,
            }
        }


class UsageError(TenureError):
    code, http_status, exit_code = "usage", 422, 2


class InvalidName(UsageError):
    code = "invalid_name"
    default_hint = "Names are 1 to 40 characters: a-z, 0-9 and '-', beginning with a letter, not ending with '-'."


class InvalidArgument(UsageError):
    code = "invalid_argument"


class PlaybookError(UsageError):
    code = "invalid_playbook"


class TooLarge(UsageError):
    code, http_status = "too_large", 413


class NotFound(TenureError):
    code, http_status, exit_code = "not_found", 404, 3


class AlreadyExists(TenureError):
    code, http_status, exit_code = "already_exists", 409, 4


class Conflict(TenureError):
    code, http_status, exit_code = "conflict", 409, 4


class Unauthenticated(TenureError):
    code, http_status, exit_code = "unauthenticated", 401, 5
    default_hint = "The token did not match. The server's own is in TENURE_HOME/token (readable by its owner only)."


class Forbidden(TenureError):
    code, http_status, exit_code = "forbidden", 403, 5


class ServerUnreachable(TenureError):
    code, http_status, exit_code, retryable = "server_unreachable", 503, 6, True
    default_hint = "Start it with `tenure up`; `tenure status` and `tenure doctor` say more."


class SetupError(TenureError):
    code, exit_code = "setup", 7
    default_hint = "`tenure doctor` lists what is missing; `tenure setup` installs it."


class CommandTimeout(TenureError):
    code, http_status, exit_code, retryable = "timeout", 504, 8, True


class DiskFull(TenureError):
    code, http_status, exit_code = "disk_full", 507, 9
    default_hint = (
        "Delete files (or rows), or give it a larger disk: `tenure agent create --disk`, `tenure db limits --disk-gb`."
    )


class DatabaseError(TenureError):
    code, http_status = "database", 422


class ConnectionLost(DatabaseError):
    """The database went away in the middle; whether the last statement took effect is not known."""

    code, retryable = "database_lost", True
    default_hint = "The office's database starts again at the next use. Check whether the statement took effect."


class EgressDenied(TenureError):
    code, http_status, exit_code = "egress_denied", 403, 5


class EgressUnreachable(TenureError):
    """The target is allowed but does not answer."""

    code, http_status, retryable = "egress_unreachable", 502, True


class LeaseLost(TenureError):
    code, http_status = "lease_lost", 409
    default_hint = "Another worker holds this run now; nothing is lost."


class SandboxError(TenureError):
    code, retryable = "sandbox", True


class SandboxDead(SandboxError):
    code = "sandbox_dead"
    default_hint = "The next command starts it again from its volume; `tenure logs AGENT` says how it ended."


class OfficeBroken(SandboxError):
    code, retryable = "office_broken", False
    default_hint = "`tenure agent history AGENT` says what was tried; `tenure wake AGENT` tries again."


class ImageUnusable(SandboxError):
    code, retryable = "image_unusable", False
    default_hint = "Nothing is running and the volume is unharmed: the office boots from its volume."


class VolumeError(TenureError):
    code = "volume"


class ArchiveError(TenureError):
    code, http_status = "archive", 422


class StorageError(TenureError):
    code, http_status, retryable = "storage", 502, True
    default_hint = (
        "Check the address, the bucket and the credentials in the environment of the server or in AWS's profile files."
    )


class DoorError(TenureError):
    code, http_status, retryable = "door", 502, True


class DoorClosed(DoorError):
    code = "door_closed"


class ModelError(TenureError):
    """`retry_after_s`: how long the provider asked to be left alone."""

    code = "model_error"
    http_status = 502
    retryable = True
    default_hint = "Try again; or give the agent another model to fall back to."

    def __init__(
        self,
        message: str,
        *,
        hint: str | None = None,
        details: dict[str, Any] | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(message, hint=hint, details=details)
        self.retry_after_s = retry_after_s


class ContextTooLong(ModelError):
    code = "context_too_long"


class InternalError(TenureError):
    code = "internal"
    default_hint = "This is a bug in Tenure. The server's log (`tenure logs --server`) has the details."


def _tree(cls: type[TenureError]) -> list[type[TenureError]]:
    return [cls, *(found for child in cls.__subclasses__() for found in _tree(child))]


def by_code() -> dict[str, type[TenureError]]:
    """All error classes by their stable code. One that only says more than its base has the code of that, and is no entry."""
    return {cls.code: cls for cls in _tree(TenureError) if "code" in cls.__dict__}


def from_payload(payload: Mapping[str, Any]) -> TenureError:
    """The error that `to_payload` described; an unknown code becomes `InternalError`."""
    body: Mapping[str, Any] = payload.get("error") or {}
    cls = by_code().get(str(body.get("code")), InternalError)
    return cls(str(body.get("message", "unknown error")), hint=body.get("hint"), details=body.get("details") or {})
