"""Every sandbox driver keeps the `Sandbox` contract: gVisor, and the fake that other tests use in its place."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from tenure.offices.sandboxes.base import SandboxDriver
from tenure.offices.sandboxes.gvisor import GvisorDriver
from tenure.offices.volumes import detect_driver
from tenure.settings import Settings
from tenure.setup import Image
from tenure.testing.process_sandbox import ProcessSandbox
from tenure.testing.sandbox_conformance import SANDBOX_CONTRACTS, Contract, SandboxBench


@pytest.fixture(params=["gvisor", "process"])
async def bench(
    request: pytest.FixtureRequest, settings: Settings, image: Image, unique_name: Callable[[str], str]
) -> AsyncIterator[SandboxBench]:
    directory = Path(tempfile.mkdtemp(prefix="tenure-"))
    volumes = detect_driver(settings.pool_dir)
    made: list[Path] = []

    async def clone(name: str) -> Path:
        made.append(settings.volumes_dir / name)
        await volumes.create(image.path, made[-1])
        return made[-1] / "rootfs"

    async def empty(name: str) -> Path:
        (directory / name).mkdir()
        return directory / name

    def driver() -> SandboxDriver:
        if request.param == "gvisor":
            return GvisorDriver(settings.runsc_root)
        return ProcessSandbox(directory / "sandboxes")

    root = clone if request.param == "gvisor" else empty
    yield SandboxBench(driver, root, unique_name, directory, officed=settings.officed_dir / "officed")
    assert await driver().ids() == []
    for volume in made:
        await volumes.delete(volume)
    shutil.rmtree(directory)


@pytest.mark.parametrize("contract", SANDBOX_CONTRACTS, ids=lambda contract: contract.__name__)
async def test_sandbox_contract(bench: SandboxBench, contract: Contract) -> None:
    await contract(bench)
