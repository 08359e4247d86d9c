"""What a command works with: the settings, the server's client, and whether the answer is to be JSON."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from tenure.errors import InvalidArgument
from tenure.settings import Settings

if TYPE_CHECKING:
    from tenure.client.blocking import Tenure
    from tenure.client.endpoint import Endpoint


@dataclass
class Session:
    settings: Settings
    json: bool = False
    subcommand: str | None = None
    """For a group that does something of its own: the command that follows, if one does."""

    @classmethod
    def begin(cls, *, home: Path | None, json: bool, subcommand: str | None = None) -> Session:
        """Raises `InvalidArgument` when the environment does not make sense."""
        try:
            settings = Settings.from_environment()
        except ValueError as error:
            raise InvalidArgument(
                f"A TENURE_ variable of the environment has no sensible value: {error}.",
                hint="TENURE_PORT, TENURE_SSH_PORT, TENURE_S3_PORT and TENURE_POOL_GB are numbers.",
            ) from None
        if home is not None:
            settings = replace(settings, home=home.absolute())
        return cls(settings, json, subcommand)

    @cached_property
    def endpoint(self) -> Endpoint:
        from tenure.client.endpoint import Endpoint

        return Endpoint.find(self.settings)

    @cached_property
    def tenure(self) -> Tenure:
        """The SDK: loads httpx and pydantic, so commands that can do without do not touch it."""
        from tenure.client.blocking import Tenure

        return Tenure(endpoint=self.endpoint)
