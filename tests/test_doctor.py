"""Doctor finds each thing that is broken, says how to mend it, and `fix` mends what set-up can mend."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from homes import own_pool, unmount_pool
from tenure.errors import SetupError
from tenure.settings import Settings
from tenure.setup import Check, current_image, doctor, fix, image, install, packages, steps
from tenure.setup.checks import cgroup_controllers
from tenure.setup.commands import find_tool

POOL_BYTES = 3 * 1024**3


@pytest.fixture(scope="module")
def healthy(test_home: Path) -> Iterator[Settings]:
    """A whole set-up home with a small pool of its own, whose image takes the shared home's root."""
    shared = current_image(Settings(home=test_home)).rootfs
    with own_pool(POOL_BYTES) as settings, pytest.MonkeyPatch.context() as patch:
        patch.setattr(image, "_same_rootfs", lambda *_: shared)
        install(settings, None)
        yield settings


def broken(checks: list[Check]) -> dict[str, Check]:
    return {check.name: check for check in checks if not check.ok}


def test_a_machine_that_was_set_up_is_healthy(healthy: Settings) -> None:
    checks = doctor(healthy)
    assert broken(checks) == {}
    assert {"sandbox", "pool", "image", "officed", "postgresql", "port"} <= {check.name for check in checks}
    assert all(check.found for check in checks)
    assert json.loads(json.dumps([check.to_json() for check in checks]))[0]["ok"] is True


def remove_officed(settings: Settings) -> None:
    (settings.officed_dir / "officed").unlink()


def age_officed(settings: Settings) -> None:
    (settings.officed_dir / "source.sha256").write_text("of another source\n")


def unmount(settings: Settings) -> None:
    unmount_pool(settings.home)


def turn_quota_off(settings: Settings) -> None:
    subprocess.run(["btrfs", "quota", "disable", str(settings.pool_dir)], check=True, timeout=60)


def forget_image(settings: Settings) -> None:
    (settings.images_dir / "current").unlink()


def point_to_no_image(settings: Settings) -> None:
    link = settings.images_dir / "current"
    link.unlink()
    link.symlink_to("debian-potato-00000000")


def remove_postgresql(settings: Settings) -> None:
    shutil.rmtree(settings.postgres_tree)


def remove_keys(settings: Settings) -> None:
    shutil.rmtree(settings.keys_dir)


@pytest.mark.parametrize(
    ("hurt", "name"),
    [
        (remove_officed, "officed"),
        (age_officed, "officed"),
        (unmount, "pool"),
        (turn_quota_off, "pool"),
        (forget_image, "image"),
        (point_to_no_image, "image"),
        (remove_postgresql, "postgresql"),
        (remove_keys, "keys"),
    ],
)
def test_what_is_broken_is_found_and_mended(healthy: Settings, hurt: Callable[[Settings], None], name: str) -> None:
    hurt(healthy)
    found = broken(doctor(healthy))
    assert name in found
    assert found[name].problem
    assert found[name].mend
    assert found[name].fixable
    assert broken(fix(healthy)) == {}


def test_an_office_survives_mending(healthy: Settings) -> None:
    (healthy.volumes_dir / "kept").write_text("yes")
    key = (healthy.keys_dir / "id_ed25519").read_text()
    unmount(healthy)
    remove_officed(healthy)
    fix(healthy)
    assert (healthy.volumes_dir / "kept").read_text() == "yes"
    assert (healthy.keys_dir / "id_ed25519").read_text() == key


def test_missing_and_old_packages_are_named(healthy: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    absent = {"mmdebstrap"}
    monkeypatch.setattr(packages, "find_tool", lambda name: None if name in absent else find_tool(name))
    monkeypatch.setattr(packages, "runsc_version", lambda: "0.0~20221219.0")
    check = broken(doctor(healthy))["packages"]
    assert "mmdebstrap" in check.problem
    assert "runsc" in check.problem
    assert check.fixable
    monkeypatch.setattr(packages, "backports_needed", lambda codename: True)
    plan = steps.STEPS[0].plan(healthy)
    assert plan is not None
    assert "-backports" in plan, "says where runsc comes from before it installs it"


def test_a_sandbox_that_does_not_start_is_found(healthy: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tenure.setup.checks.SMOKE_COMMAND", ("runsc", "--platform=none-such", "do", "/bin/true"))
    check = broken(doctor(healthy))["sandbox"]
    assert "runsc ended with code" in check.problem
    assert check.mend
    assert not check.fixable, "set-up cannot give a machine what its kernel lacks"


def test_a_port_that_is_taken_is_found(healthy: Settings) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", healthy.port))
        taken.listen()
        check = broken(doctor(healthy))["port"]
    assert str(healthy.port) in check.problem
    assert "TENURE_PORT" in check.mend
    assert "port" not in broken(doctor(healthy))


def test_a_server_that_hangs_is_found(healthy: Settings) -> None:
    healthy.run_dir.mkdir(exist_ok=True)
    healthy.pid_file.write_text(f"{os.getpid()}\n")
    try:
        check = broken(doctor(healthy))["server"]
    finally:
        healthy.pid_file.unlink()
    assert str(os.getpid()) in check.problem
    assert "tenure down" in check.mend


def test_another_system_is_told_so(healthy: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> None:
        raise SetupError("This machine runs Plan 9.", hint="Use Debian.")

    monkeypatch.setattr("tenure.setup.checks.release", refuse)
    check = broken(doctor(healthy))["system"]
    assert (check.problem, check.mend) == ("This machine runs Plan 9.", "Use Debian.")


def test_cgroups_of_both_versions_are_read(tmp_path: Path) -> None:
    for name in ("memory", "cpu,cpuacct"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "tasks").touch()
    assert cgroup_controllers(tmp_path) == {"memory", "cpu", "cpuacct"}
    (tmp_path / "cgroup.controllers").write_text("cpu memory pids\n")
    assert cgroup_controllers(tmp_path) == {"cpu", "memory", "pids"}


def test_a_home_that_was_never_set_up_is_told_so(test_home: Path) -> None:
    with own_pool(POOL_BYTES) as settings:
        found = broken(doctor(settings))
        assert {"pool", "image", "officed", "postgresql", "keys"} == set(found)
        assert all(check.fixable and "tenure setup" in check.mend for check in found.values())
        assert not settings.pool_dir.exists(), "looking changes nothing"
