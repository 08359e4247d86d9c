"""What a connection's URL says: where it leads, how it is protected, and as whom the office comes there. Pure.

    postgres://user@host:5432/database?sslmode=verify-full     also postgresql://, redshift:// (port 5439)
    https://host/base/path                                      an HTTP API; the credential becomes a header
    clickhouse://user@host:8443/                                its HTTP interface
    mysql://host:3306/                                          bytes only: the office logs in by itself
    tcp://host:port                                             bytes only

Nothing here ever repeats a password: a URL that has one is refused.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum
from urllib.parse import parse_qsl, unquote, urlsplit

from tenure.errors import InvalidArgument, TenureError
from tenure.secrets.egress.rules import normalise_host

URL_CHARS_MAX = 2000
NAME_CHARS_MAX = 63
"""Of a user or a database: PostgreSQL's own limit."""
USER_NAME_CHARS_MAX = 256
HEADER_PATTERN = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,63}\Z")
HINT = (
    "Write postgres://user@host:5432/database, https://host/path, clickhouse://user@host:8443/, mysql://host:3306/ or "
    "tcp://host:port."
)


class Kind(StrEnum):
    POSTGRES = "postgres"
    HTTP = "http"
    MYSQL = "mysql"
    TCP = "tcp"


class Tls(StrEnum):
    """PostgreSQL's words; an HTTP API is either VERIFY_FULL or, without encryption, DISABLE."""

    VERIFY_FULL = "verify-full"
    VERIFY_CA = "verify-ca"
    REQUIRE = "require"
    DISABLE = "disable"

    @property
    def is_verified(self) -> bool:
        return self in (Tls.VERIFY_FULL, Tls.VERIFY_CA)


class Auth(StrEnum):
    """What the server does with the credential."""

    PASSWORD = "password"
    """It logs in to PostgreSQL with it."""
    BEARER = "bearer"
    BASIC = "basic"
    HEADER = "header"
    """It is the value of `Target.header`."""
    NONE = "none"

    @property
    def has_secret(self) -> bool:
        return self is not Auth.NONE


@dataclass(frozen=True)
class Target:
    """Where a connection leads."""

    kind: Kind
    host: str
    port: int
    user: str = ""
    database: str = ""
    path: str = ""
    """Of an HTTP API: what every path begins with; without a slash at its end."""
    tls: Tls = Tls.DISABLE
    auth: Auth = Auth.NONE
    header: str = ""
    """Name of the header that carries the credential, where `auth` is HEADER."""

    @property
    def authority(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"

    @property
    def inside(self) -> tuple[str, int]:
        """What is put behind a connection's name, and the port: how an office reaches it."""
        match self.kind:
            case Kind.POSTGRES:
                return ".db", 5432
            case Kind.MYSQL:
                return ".db", 3306
            case Kind.HTTP:
                return ".api", 80
            case Kind.TCP:
                return ".tcp", self.port

    @property
    def url(self) -> str:
        """As a person wrote it, without a credential."""
        user = f"{self.user}@" if self.user else ""
        match self.kind:
            case Kind.POSTGRES:
                return f"postgres://{user}{self.authority}/{self.database}?sslmode={self.tls}"
            case Kind.HTTP:
                scheme = "https" if self.tls.is_verified else "http"
                return f"{scheme}://{user}{self.authority}{self.path or '/'}"
            case Kind.MYSQL | Kind.TCP:
                return f"{self.kind}://{self.authority}"


SCHEMES = {
    "postgres": (Kind.POSTGRES, 5432),
    "postgresql": (Kind.POSTGRES, 5432),
    "redshift": (Kind.POSTGRES, 5439),
    "https": (Kind.HTTP, 443),
    "http": (Kind.HTTP, 80),
    "clickhouse": (Kind.HTTP, 8443),
    "mysql": (Kind.MYSQL, 3306),
    "tcp": (Kind.TCP, None),
}


def read_target(url: str, *, auth: str | None = None, has_secret: bool = False, private: bool = False) -> Target:
    """`auth` is one of `Auth`, or "header:NAME"; None for what suits the kind and whether there is a secret. Raises
    `InvalidArgument`."""
    if len(url) > URL_CHARS_MAX or not url.isascii() or not url.isprintable() or " " in url or "\\" in url:
        raise InvalidArgument("This is no address of a connection.", hint=HINT)
    try:
        parts = urlsplit(url)
        port, host = parts.port, normalise_host(parts.hostname or "")
    except (ValueError, TenureError):
        raise InvalidArgument("This is no address of a connection.", hint=HINT) from None
    kind, default_port = SCHEMES.get(parts.scheme.lower(), (None, None))
    if kind is None or not (port or default_port):
        raise InvalidArgument("This is no address of a connection.", hint=HINT)
    if parts.password is not None:
        raise InvalidArgument(
            "The address has a password in it, where others may see it. Nothing was kept of it.",
            hint="Leave it out and give it on stdin: --password-stdin. If it was real, change it where it is used.",
        )
    user = unquote(parts.username or "")
    where = (kind, host, port or default_port or 0)
    if kind is Kind.POSTGRES:
        return _postgres(*where, user, parts.path, parts.query, auth, has_secret)
    if parts.query or parts.fragment:
        raise InvalidArgument("An address of this kind has nothing behind its path.", hint=HINT)
    if kind is Kind.HTTP:
        return _http(*where, user, parts.path, parts.scheme.lower(), auth, has_secret, private)
    if has_secret or user or auth or parts.path not in ("", "/"):
        raise InvalidArgument(
            f"A {kind} connection passes bytes on: the office logs in by itself, with a credential that it has.",
            hint=f"Give neither user, database nor password: {kind}://host:{where[2]}. "
            "With postgres:// and https:// Tenure logs in, and the office never has the credential.",
        )
    return Target(*where)


def _postgres(
    kind: Kind, host: str, port: int, user: str, path: str, query: str, auth: str | None, has_secret: bool
) -> Target:
    database = unquote(path.removeprefix("/")) or user
    options = dict(parse_qsl(query, keep_blank_values=True))
    mode = options.pop("sslmode", Tls.VERIFY_FULL.value)
    if not user or "/" in database or not _is_name(user) or not _is_name(database):
        raise InvalidArgument("Say as whom to log in, and to which database.", hint=HINT)
    if options or mode not in set(Tls):
        raise InvalidArgument(
            "Behind the database may stand ?sslmode= with verify-full (the default), verify-ca, require or disable, "
            "and nothing else.",
            hint="`prefer` and `allow` would let whoever is in between choose: say `require` or `disable` if you mean it.",
        )
    if auth not in (None, Auth.PASSWORD.value):
        raise InvalidArgument("To PostgreSQL one logs in with a password.")
    if not has_secret:
        raise InvalidArgument("A PostgreSQL connection needs its password.", hint="Give it on stdin: --password-stdin.")
    return Target(kind, host, port, user, database, tls=Tls(mode), auth=Auth.PASSWORD)


def _http(
    kind: Kind,
    host: str,
    port: int,
    user: str,
    path: str,
    scheme: str,
    auth: str | None,
    has_secret: bool,
    private: bool,
) -> Target:
    if scheme == "http" and not private:
        raise InvalidArgument(
            "Without TLS everybody in between would read the credential.",
            hint="Write https://. For a service of your own network that has no TLS, say --private as well.",
        )
    wanted, _, header = (auth or _suiting(user, has_secret)).partition(":")
    if wanted not in (Auth.BEARER, Auth.BASIC, Auth.HEADER, Auth.NONE) or bool(header) != (wanted == Auth.HEADER):
        raise InvalidArgument(
            "A credential is sent as `bearer`, as `basic` (the address has the user), or as `header:NAME`.",
            hint="For example: --auth header:X-Api-Key",
        )
    if header and (not HEADER_PATTERN.match(header) or header.lower() in _RESERVED):
        raise InvalidArgument(f"{header[:64]!r} is no header that could carry a credential.")
    if has_secret != (wanted != Auth.NONE) or bool(user) != (wanted == Auth.BASIC):
        raise InvalidArgument(
            "Credential, user and --auth do not fit together.",
            hint="`basic` takes a user in the address and a password; `bearer` and `header:NAME` take a token only.",
        )
    if len(user) > USER_NAME_CHARS_MAX or ":" in user or not user.isprintable():
        raise InvalidArgument("This is no user's name.")
    base = path.rstrip("/")
    if "//" in base or any(unquote(part) in (".", "..") for part in base.split("/")):
        raise InvalidArgument("The path of the address is not a plain one.", hint=HINT)
    tls = Tls.DISABLE if scheme == "http" else Tls.VERIFY_FULL
    return Target(kind, host, port, user, path=base, tls=tls, auth=Auth(wanted), header=header)


_RESERVED = frozenset(
    {"host", "connection", "content-length", "transfer-encoding", "te", "trailer", "upgrade", "keep-alive", "expect"}
)


def _suiting(user: str, has_secret: bool) -> str:
    return Auth.BASIC.value if user else Auth.BEARER.value if has_secret else Auth.NONE.value


def _is_name(text: str) -> bool:
    return 0 < len(text) <= NAME_CHARS_MAX and text.isprintable()
