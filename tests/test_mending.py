"""What the image can lend comes back; what the agent has stays, and nothing leads out of the root."""

from __future__ import annotations

import json
import os
import shutil
from datetime import UTC, datetime
from pathlib import Path

import pytest

from tenure.offices.mending import database_damage, lend, lend_missing, mend_database
from tenure.offices.models import Limits, OfficeRecord
from tenure.settings import Settings

PASSWD = "root:x:0:0::/root:/bin/bash\nagent:x:1000:1000::/home/agent:/bin/bash\n"


def package(root: Path, name: str, version: str, *files: str) -> None:
    """Installs a package as dpkg records it."""
    info = root / "var/lib/dpkg/info"
    info.mkdir(parents=True, exist_ok=True)
    (info / f"{name}.list").write_text("".join(f"/{path}\n" for path in ("usr", *files)))
    with (root / "var/lib/dpkg/status").open("a") as status:
        status.write(f"Package: {name}\nStatus: install ok installed\nVersion: {version}\n\n")
    for path in files:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(f"{name} {version} {path}")
        (root / path).chmod(0o755)


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(home=tmp_path)


@pytest.fixture
def record() -> OfficeRecord:
    return OfficeRecord("analyst", 1, "image", Limits(), (), "asleep", datetime.now(UTC))


@pytest.fixture
def image(settings: Settings) -> Path:
    image = settings.images_dir / "image"
    root = image / "rootfs"
    for name in ("etc", "home/agent", "tmp", "var/tmp", "root", "run", "var/lib/tenure"):
        (root / name).mkdir(parents=True)
    for name in ("bin", "lib", "lib64", "sbin"):
        (root / name).symlink_to(f"usr/{name}")
    (root / "etc/passwd").write_text(PASSWD)
    (root / "etc/group").write_text("root:x:0:\nagent:x:1000:\n")
    package(root, "base", "1", "usr/bin/bash", "usr/bin/sh", "usr/bin/env", "usr/bin/dpkg", "usr/lib/libc.so")
    package(root, "doors", "1", "usr/bin/tini-static", "usr/sbin/sshd")
    package(root, "extra", "1", "usr/bin/extra")
    for part in ("postgres", "objects"):
        (image / part).mkdir()
    return image


@pytest.fixture
def volume(settings: Settings, image: Path, record: OfficeRecord) -> Path:
    volume = settings.volumes_dir / record.name
    shutil.copytree(image, volume, symlinks=True)
    (volume / "office.json").write_text(json.dumps({"agent": record.name, "image": "image"}))
    (volume / "rootfs/home/agent/work").write_text("mine")
    return volume


def test_a_sound_volume_is_left_as_it_is(settings: Settings, record: OfficeRecord, volume: Path) -> None:
    before = {path: path.lstat().st_mtime_ns for path in volume.rglob("*")}
    assert lend(settings, record, volume) == ([], [])
    assert {path: path.lstat().st_mtime_ns for path in volume.rglob("*")} == before


@pytest.mark.parametrize("lost", ["usr/bin/bash", "usr/sbin/sshd", "usr/bin/tini-static", "etc/passwd", "lib64"])
def test_what_an_office_cannot_do_without_is_lent(
    settings: Settings, record: OfficeRecord, volume: Path, image: Path, lost: str
) -> None:
    (volume / "rootfs" / lost).unlink()
    lent, damage = lend(settings, record, volume)
    assert (len(lent), damage) == (1, [])
    assert os.lstat(volume / "rootfs" / lost).st_mode == os.lstat(image / "rootfs" / lost).st_mode
    assert (volume / "rootfs/home/agent/work").read_text() == "mine"


def test_an_emptied_program_and_a_forgotten_user_are_lent_but_not_what_the_agent_put_there(
    settings: Settings, record: OfficeRecord, volume: Path
) -> None:
    root = volume / "rootfs"
    (root / "usr/bin/bash").write_text("")
    (root / "etc/passwd").write_text("root:x:0:0::/root:/bin/sh\n")
    (root / "usr/bin/sh").write_text("another shell")
    assert len(lend(settings, record, volume)[0]) == 2
    assert (root / "usr/bin/bash").read_text() == "base 1 usr/bin/bash"
    assert (root / "etc/passwd").read_text() == PASSWD
    assert (root / "usr/bin/sh").read_text() == "another shell"


def test_where_everything_is_lost_all_that_the_office_had_of_the_image_comes_back(
    settings: Settings, record: OfficeRecord, volume: Path
) -> None:
    root = volume / "rootfs"
    (root / "var/lib/dpkg/status").write_text(
        (root / "var/lib/dpkg/status").read_text().replace("Package: extra", "Package: x")
    )
    shutil.rmtree(root / "usr")
    shutil.rmtree(root / "home")
    assert lend(settings, record, volume)[1] == []
    assert (root / "usr/lib/libc.so").read_text() == "base 1 usr/lib/libc.so"
    assert not (root / "usr/bin/extra").exists(), "the agent had removed that package"
    assert (root / "home/agent").is_dir()


@pytest.mark.parametrize("part", ["rootfs", "postgres", "objects"])
def test_a_lost_part_is_damage(settings: Settings, record: OfficeRecord, volume: Path, part: str) -> None:
    shutil.rmtree(volume / part)
    assert lend(settings, record, volume) == ([], [f"{part}/ is missing"])


def test_another_agents_volume_is_damage_and_an_unreadable_record_is_written_anew(
    settings: Settings, record: OfficeRecord, volume: Path
) -> None:
    (volume / "office.json").write_text(json.dumps({"agent": "somebody", "image": "image"}))
    assert lend(settings, record, volume) == ([], ["it is the volume of somebody"])
    (volume / "office.json").write_text("{")
    lent, damage = lend(settings, record, volume)
    assert (len(lent), damage) == (1, [])
    assert json.loads((volume / "office.json").read_text())["agent"] == record.name


def test_changed_files_of_a_package_come_back_but_not_those_of_another_version(volume: Path, image: Path) -> None:
    root = volume / "rootfs"
    (root / "usr/lib/libc.so").write_text("scrambled")
    (root / "usr/bin/extra").write_text("extra 2")
    status = root / "var/lib/dpkg/status"
    status.write_text(
        status.read_text().replace(
            "Package: extra\nStatus: install ok installed\nVersion: 1",
            "Package: extra\nStatus: install ok installed\nVersion: 2",
        )
    )
    (root / "etc/group").write_text("root:x:0:\nagent:x:1000:\nmore:x:1001:\n")
    lend_missing(root, image / "rootfs", changed=True)
    assert (root / "usr/lib/libc.so").read_text() == "base 1 usr/lib/libc.so"
    assert (root / "usr/bin/extra").read_text() == "extra 2"
    assert "more" in (root / "etc/group").read_text(), "what is configured is the agent's"


def test_a_link_in_the_root_does_not_lead_the_host_out(
    tmp_path: Path, settings: Settings, record: OfficeRecord, volume: Path
) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    root = volume / "rootfs"
    shutil.rmtree(root / "usr/bin")
    (root / "usr/bin").symlink_to(outside)
    lend(settings, record, volume)
    assert list(outside.iterdir()) == []


def test_the_databases_configuration_is_the_images_and_its_data_is_not_touched(tmp_path: Path) -> None:
    template, data = tmp_path / "template", tmp_path / "data"
    for directory in (template, data):
        (directory / "base").mkdir(parents=True)
        for name in ("postgresql.conf", "postgresql.auto.conf", "pg_hba.conf", "pg_ident.conf", "PG_VERSION"):
            (directory / name).write_text(name)
    (data / "base/1").write_text("rows")
    (data / "postmaster.pid").write_text("nonsense\n")
    (data / "postgresql.conf").unlink()
    (data / "postgresql.conf").symlink_to("/etc/passwd")
    (data / "pg_hba.conf").unlink()
    assert mend_database(data, template)
    assert (data / "postgresql.conf").read_text() == "postgresql.conf"
    assert not (data / "postgresql.conf").is_symlink()
    assert (data / "pg_hba.conf").read_text() == "pg_hba.conf"
    assert (data / "pg_notify").is_dir()
    assert not (data / "postmaster.pid").exists()
    assert (data / "base/1").read_text() == "rows"
    assert mend_database(data, template) == []


def test_a_control_file_that_was_cut_is_seen(tmp_path: Path) -> None:
    control = tmp_path / "postgres/global/pg_control"
    control.parent.mkdir(parents=True)
    assert database_damage(tmp_path)
    control.write_bytes(bytes(100))
    assert database_damage(tmp_path)
    control.write_bytes(bytes(8192))
    assert not database_damage(tmp_path)
