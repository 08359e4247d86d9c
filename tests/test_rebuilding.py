"""A rebuilt root has the agent's work and nothing that leads out of it; what was installed is read as hostile."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from tenure.offices.rebuilder import jobs_of
from tenure.offices.rebuilding import CARRIED, OLD_ROOT, SetUp, carry, recorded_set_up


def status(*packages: str) -> str:
    return "".join(f"Package: {name}\nStatus: install ok installed\nVersion: 1\n\n" for name in packages)


@pytest.fixture
def image(tmp_path: Path) -> Path:
    image = tmp_path / "image"
    (image / "var/lib/dpkg").mkdir(parents=True)
    (image / "var/lib/dpkg/status").write_text(status("base", "bash"))
    return image


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "office/rootfs"
    (root / "var/lib/dpkg").mkdir(parents=True)
    (root / "var/lib/apt").mkdir(parents=True)
    return root


def test_what_was_asked_for_beyond_the_image_is_installed_again(root: Path, image: Path) -> None:
    (root / "var/lib/dpkg/status").write_text(status("base", "cowsay", "libcow1", "nginx"))
    (root / "var/lib/apt/extended_states").write_text("Package: libcow1\nArchitecture: amd64\nAuto-Installed: 1\n\n")
    packages = root / "usr/local/lib/python3.11/dist-packages"
    (packages / "flask-3.0.1.dist-info").mkdir(parents=True)
    (packages / "flask").mkdir()
    (root / "home/agent/.config/tenure").mkdir(parents=True)
    (root / "home/agent/.config/tenure/setup.sh").write_text("true")
    assert recorded_set_up(root, image) == SetUp(("cowsay", "nginx"), ("flask==3.0.1",), script=True)
    assert [(label, user) for label, user, _ in jobs_of(recorded_set_up(root, image))] == [
        ("packages", "root"),
        ("pip", "root"),
        ("script", "agent"),
    ]


def test_nothing_was_installed_and_nothing_is_done(root: Path, image: Path) -> None:
    (root / "var/lib/dpkg/status").write_text(status("base"))
    assert not recorded_set_up(root, image)
    assert list(jobs_of(SetUp())) == []


def test_names_that_are_none_are_never_part_of_a_command(root: Path, image: Path) -> None:
    hostile = ["-o=x", "a;reboot", "$(id)", "../x", "A B", "a" * 200, "--force"]
    (root / "var/lib/dpkg/status").write_text(status(*hostile, "fine-name"))
    packages = root / "usr/local/lib/python3.11/dist-packages"
    for name in (
        "-e-1.dist-info",
        "x;y-1.dist-info",
        "ok-1.0;id.dist-info",
        "git+https:-1.dist-info",
        "good-1.0.dist-info",
    ):
        (packages / name).mkdir(parents=True)
    found = recorded_set_up(root, image)
    assert found == SetUp(("fine-name",), ("good==1.0",))
    for _, _, argv in jobs_of(found):
        assert all(shlex.quote(word) == word or "\n" in word for word in argv[4:])


@pytest.fixture
def staged(tmp_path: Path) -> Path:
    staged = tmp_path / "staged"
    for tree in (OLD_ROOT, "rootfs"):
        for path in (*CARRIED, "etc"):
            (staged / tree / path).mkdir(parents=True)
        (staged / tree / "etc/passwd").write_text(
            "root:x:0:0::/root:/bin/bash\nagent:x:1000:1000::/home/agent:/bin/bash\n"
        )
        (staged / tree / "etc/group").write_text("root:x:0:\n")
        (staged / tree / "etc/shadow").write_text("root:*:1::::::\n")
    return staged


def test_the_work_is_carried_and_the_users_with_it(staged: Path) -> None:
    old, new = staged / OLD_ROOT, staged / "rootfs"
    for path in CARRIED:
        (old / path / "work").write_text(path)
        (new / path / "of-the-image").write_text("")
    with (old / "etc/passwd").open("a") as passwd:
        passwd.write(
            "helper:x:1001:1001::/home/helper:/bin/bash\nsneaky:x:0:0::/:/bin/sh\nbad name:x:1002:1::/:/bin/sh\n"
        )
    (old / "etc/shadow").write_text("root:$6$hash:1::::::\nhelper:*:1::::::\n")
    carry(staged)
    for path in CARRIED:
        assert (new / path / "work").read_text() == path
        assert not (new / path / "of-the-image").exists()
    users = [line.split(":")[0] for line in (new / "etc/passwd").read_text().splitlines()]
    assert users == ["root", "agent", "helper"]
    assert (new / "etc/shadow").read_text() == "root:*:1::::::\nhelper:*:1::::::\n"


def test_a_link_in_place_of_a_directory_is_not_followed(staged: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    (outside / "lib/tenure").mkdir(parents=True)
    (outside / "secret").write_text("the host's")
    old = staged / OLD_ROOT
    for path in ("srv", "home"):
        (old / path).rmdir()
        (old / path).symlink_to(outside)
    (old / "var").rename(old / "var-aside")
    (old / "var").symlink_to(outside)
    carry(staged)
    assert (outside / "secret").read_text() == "the host's"
    assert (outside / "lib/tenure").is_dir(), "a directory of the host was moved into the office"
    assert not (staged / "rootfs/srv").is_symlink()
    assert (staged / "rootfs/home").is_dir()
