"""Which server a client talks to, and the token that it shows."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from tenure.errors import InvalidArgument, ServerUnreachable, TenureError, Unauthenticated
from tenure.settings import Settings


@dataclass(frozen=True)
class Endpoint:
    """`socket` is the server's UNIX socket, or None to use `url` over TCP."""

    url: str
    socket: Path | None = None
    token: str | None = field(default=None, repr=False)

    @classmethod
    def find(cls, settings: Settings) -> Endpoint:
        """`TENURE_URL` when it is set, otherwise the socket under `settings.home`. Does not connect. Raises
        `InvalidArgument` for an address that is no http URL, `Unauthenticated` for a token that may not be read."""
        if settings.url is not None:
            if not settings.url.startswith(("http://", "https://")):
                raise InvalidArgument(
                    f"TENURE_URL is {settings.url!r}, which is not an http address.",
                    hint="It looks like http://127.0.0.1:7800.",
                )
            return cls(url=settings.url.rstrip("/"), token=_token(settings))
        return cls(url="http://tenure", socket=settings.api_socket, token=_token(settings))

    @property
    def headers(self) -> dict[str, str]:
        return {} if self.token is None else {"Authorization": f"Bearer {self.token}"}

    def __str__(self) -> str:
        return self.url if self.socket is None else str(self.socket)

    def unreachable(self, error: BaseException) -> TenureError:
        """What to tell when connecting to this endpoint failed with `error`."""
        if _denied(error):
            return Unauthenticated(
                f"This user may not connect to {self}.",
                hint="Run it as the user who set Tenure up (`sudo tenure …`).",
            )
        return ServerUnreachable(f"No Tenure server answers at {self}.", details={"sent": False})


def _token(settings: Settings) -> str | None:
    if settings.token is not None:
        return settings.token
    try:
        return settings.token_file.read_text(encoding="utf-8").strip() or None
    except PermissionError:
        raise Unauthenticated(
            f"This user may not read the server's token ({settings.token_file}).",
            hint="Run it as the user who set Tenure up (`sudo tenure …`), or set TENURE_TOKEN.",
        ) from None
    except (FileNotFoundError, NotADirectoryError):
        return None  # No server was ever started here: connecting will say so in better words.


def _denied(error: BaseException | None) -> bool:
    """Whether a permission was the reason, at any depth: httpx and httpcore each wrap the error of the socket."""
    while error is not None:
        if isinstance(error, PermissionError):
            return True
        error = error.__cause__ or error.__context__
    return False
