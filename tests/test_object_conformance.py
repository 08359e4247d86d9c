"""Every backend of a bucket keeps the same contracts; what one cannot do it says."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from fixtures.s3_server import serve_s3_app
from tenure.data.s3.store.external import open_external
from tenure.data.s3.store.volume import VolumeStore
from tenure.testing.object_conformance import Contract, contracts

NOW = datetime(2026, 1, 1, tzinfo=UTC)


def name_of(contract: Contract) -> str:
    return contract.__name__


@pytest.mark.parametrize("contract", contracts(), ids=name_of)
async def test_volume(contract: Contract, tmp_path: Path) -> None:
    store = VolumeStore(tmp_path / "objects")
    await store.create("b")
    await contract(store.bucket("b"))


@pytest.mark.parametrize("contract", contracts(full=False), ids=name_of)
async def test_directory_elsewhere(contract: Contract, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    await contract(open_external(f"file://{tmp_path}/elsewhere", NOW, tmp_path / "spool"))


@pytest.mark.parametrize("contract", contracts(full=False), ids=name_of)
async def test_s3_elsewhere(contract: Contract, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Which is our own gateway."""
    async with served(tmp_path, monkeypatch):
        await contract(open_external("s3://bucket/within/", NOW, tmp_path / "spool"))


@contextlib.asynccontextmanager
async def served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[None]:
    async with serve_s3_app(tmp_path / "far") as far:
        await far.objects.create_bucket("bucket")
        for name, value in far.environment.items():
            monkeypatch.setenv(name, value)
        yield
