"""Tenure: every AI agent gets an office of its own, and its work survives failure.

from tenure import Tenure

run = Tenure().agents.create("analyst", egress=["pip"]).run("find the anomalous days", playbook="weather.yaml")
print(run.wait().state)
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tenure.client import AsyncTenure, Tenure

__all__ = ["AsyncTenure", "Tenure", "__version__"]

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """Loads the SDK (httpx, pydantic) only where it is used: every module of the package passes through here."""
    if name in ("Tenure", "AsyncTenure"):
        from tenure import client

        return getattr(client, name)
    raise AttributeError(f"module 'tenure' has no attribute {name!r}")
