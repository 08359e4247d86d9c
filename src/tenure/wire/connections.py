"""Named connections, as they travel. A credential only ever travels towards the server."""

from __future__ import annotations

from datetime import datetime

from pydantic import Field, SecretStr, field_serializer

from tenure.wire import Answer, Request

URL_CHARS_MAX = 2000
SECRET_CHARS_MAX = 16 * 1024
CA_CHARS_MAX = 64 * 1024


class ConnectionRequest(Request):
    """`POST /v1/connections`."""

    name: str
    url: str = Field(min_length=1, max_length=URL_CHARS_MAX)
    """Without a password: postgres://user@host:5432/database, https://host/path, mysql://host:3306, tcp://host:port."""
    secret: SecretStr | None = Field(default=None, min_length=1, max_length=SECRET_CHARS_MAX)
    """The password or token. No answer has it."""
    auth: str | None = Field(default=None, max_length=100)
    """How an HTTP API is shown it: "bearer", "basic" or "header:NAME". None: what suits the address."""
    private: bool = False
    """It may lead to this machine and its networks."""
    ca: str | None = Field(default=None, max_length=CA_CHARS_MAX)
    """Certificates (PEM) to check the other end's with. None: those that this machine trusts."""

    @field_serializer("secret", when_used="json-unless-none")
    def _told(self, secret: SecretStr) -> str:
        return secret.get_secret_value()


class Connection(Answer):
    name: str
    url: str
    kind: str
    """"postgres", "http", "mysql" or "tcp"."""
    auth: str
    """What the server does with the credential: "password", "bearer", "basic", "header" or "none" (the office has its own)."""
    address: str
    """How a granted office reaches it: "crm.db:5432"."""
    private: bool
    created_at: datetime
    agents: list[str] = Field(default_factory=list[str])
    """To whom it is granted; of one connection, not in lists."""


class ConnectionList(Answer):
    connections: list[Connection]


class ConnectionCheck(Answer):
    """`POST /v1/connections/{name}/check`."""

    ok: bool
    reached: bool
    credential_works: bool | None = None
    """None: that cannot be told."""
    detail: str
    hint: str = ""
    duration_s: float
