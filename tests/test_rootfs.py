"""A hostile root leads neither reads nor writes out of itself."""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
import threading
from pathlib import Path

import pytest

from tenure.errors import VolumeError
from tenure.offices.rootfs import exists_in, make_directory, read_file, remove_file, write_file

UID, GID = os.geteuid(), os.getegid()


def write(rootfs: Path, path: str, content: bytes = b"ours", mode: int = 0o644) -> bool:
    return write_file(rootfs, path, content, mode, UID, GID)


@pytest.fixture
def rootfs(tmp_path: Path) -> Path:
    root = tmp_path / "rootfs"
    (root / "etc").mkdir(parents=True)
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "file").write_bytes(b"the host's")
    return root


def untouched(rootfs: Path) -> bool:
    outside = rootfs.parent / "outside"
    return [path.name for path in outside.iterdir()] == ["file"] and (outside / "file").read_bytes() == b"the host's"


def test_files_get_content_mode_and_directories(rootfs: Path) -> None:
    assert write(rootfs, "/a/b/c.conf", b"x", 0o600) is True
    path = rootfs / "a" / "b" / "c.conf"
    assert path.read_bytes() == b"x"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert read_file(rootfs, "/a/b/c.conf") == b"x"
    assert write_file(rootfs, "a/b/text", "é", 0o600, UID, GID) is True
    assert read_file(rootfs, "a/b/text") == "é".encode()
    assert exists_in(rootfs, "/a/b")
    assert not exists_in(rootfs, "/a/c")
    assert read_file(rootfs, "/a/none") is None
    assert read_file(rootfs, "/a/b/c.conf/none") is None
    remove_file(rootfs, "/a/b/c.conf")
    remove_file(rootfs, "/a/b/c.conf")
    assert not path.exists()


def test_what_is_so_already_is_not_written(rootfs: Path) -> None:
    assert write(rootfs, "/etc/x", b"1") is True
    before = (rootfs / "etc" / "x").stat()
    assert write(rootfs, "/etc/x", b"1") is False
    assert (rootfs / "etc" / "x").stat().st_ino == before.st_ino
    assert write(rootfs, "/etc/x", b"1", 0o600) is True
    assert write(rootfs, "/etc/x", b"2", 0o600) is True


@pytest.mark.parametrize("target", ["absolute", "relative", "up"])
def test_a_link_in_the_place_of_a_file_is_replaced_not_followed(rootfs: Path, target: str) -> None:
    outside = rootfs.parent / "outside" / "file"
    link = {"absolute": str(outside), "relative": "../../outside/file", "up": "../" * 30 + str(outside)}[target]
    (rootfs / "etc" / "x").symlink_to(link)
    assert write(rootfs, "/etc/x", b"the host's") is True, "the link is not the file, even with the same content"
    assert not (rootfs / "etc" / "x").is_symlink()
    assert untouched(rootfs)


@pytest.mark.parametrize("target", ["absolute", "relative", "up"])
def test_a_linked_directory_leads_inside_the_root(rootfs: Path, target: str) -> None:
    outside = rootfs.parent / "outside"
    link = {"absolute": str(outside), "relative": "../outside", "up": "../" * 30 + str(outside)}[target]
    (rootfs / "pip").symlink_to(link)
    try:
        write(rootfs, "/pip/file", b"ours")
    except VolumeError:
        pass
    else:
        assert read_file(rootfs, "/pip/file") == b"ours"
    assert untouched(rootfs)
    inside = rootfs / str(outside).lstrip("/")
    inside.mkdir(parents=True, exist_ok=True)
    (rootfs / "outside").mkdir(exist_ok=True)
    assert write(rootfs, "/pip/file2", b"ours") is True
    assert untouched(rootfs)


def test_honest_links_work_as_in_the_office(rootfs: Path) -> None:
    (rootfs / "usr" / "lib").mkdir(parents=True)
    (rootfs / "lib").symlink_to("usr/lib")
    (rootfs / "abs").symlink_to("/usr/lib")
    assert write(rootfs, "/lib/a") is True
    assert write(rootfs, "/abs/b") is True
    assert sorted(path.name for path in (rootfs / "usr" / "lib").iterdir()) == ["a", "b"]
    (rootfs / "etc" / "link").symlink_to("/usr/lib/a")
    assert read_file(rootfs, "/etc/link") == b"ours"


def test_reads_do_not_leave_the_root(rootfs: Path) -> None:
    (rootfs / "etc" / "shadow").symlink_to(rootfs.parent / "outside" / "file")
    (rootfs / "etc" / "up").symlink_to("../../outside/file")
    assert read_file(rootfs, "/etc/shadow") is None
    assert read_file(rootfs, "/etc/up") is None
    assert read_file(rootfs, "/../outside/file") is None
    assert not any(exists_in(rootfs, path) for path in ("/etc/shadow", "/etc/up", "/../outside"))


def test_only_regular_files_are_read(rootfs: Path) -> None:
    os.mkfifo(rootfs / "etc" / "pipe")
    for path in ("/etc/pipe", "/etc"):
        with pytest.raises(VolumeError):
            read_file(rootfs, path)
    if os.geteuid() == 0:
        os.mknod(rootfs / "etc" / "zero", stat.S_IFCHR | 0o666, os.makedev(1, 5))
        with pytest.raises(VolumeError):
            read_file(rootfs, "/etc/zero")
    assert write(rootfs, "/etc/pipe", b"") is True, "a pipe in the place of a file is replaced"


def test_reading_is_limited(rootfs: Path) -> None:
    write(rootfs, "/big", b"x" * 1000)
    assert read_file(rootfs, "/big", bytes_max=10) == b"x" * 10


@pytest.mark.parametrize("path", ["", "/", "/etc/..", "/etc/.", "..", "/a\0b"])
def test_paths_that_name_no_file_are_refused(rootfs: Path, path: str) -> None:
    with pytest.raises(VolumeError):
        write(rootfs, path)


def test_directories_and_set_id_bits_are_refused(rootfs: Path) -> None:
    with pytest.raises(VolumeError):
        write(rootfs, "/etc")
    assert [path.name for path in rootfs.iterdir()] == ["etc"], "nothing temporary is left"
    with pytest.raises(VolumeError):
        write(rootfs, "/etc/su", mode=0o4755)
    (rootfs / "etc" / "file").write_bytes(b"")
    with pytest.raises(VolumeError):
        write(rootfs, "/etc/file/x")
    (rootfs / "loop").symlink_to("loop")
    with pytest.raises(VolumeError):
        write(rootfs, "/loop/x")


def test_a_directory_is_made_with_mode_and_not_through_a_link(rootfs: Path) -> None:
    make_directory(rootfs, "/home/agent", 0o700, UID, GID)
    make_directory(rootfs, "/home/agent", 0o750, UID, GID)
    assert stat.S_IMODE((rootfs / "home" / "agent").stat().st_mode) == 0o750
    (rootfs / "home" / "link").symlink_to(rootfs.parent / "outside")
    with pytest.raises(VolumeError):
        make_directory(rootfs, "/home/link", 0o777, UID, GID)
    assert untouched(rootfs)


def test_a_root_that_changes_while_we_write_does_not_lead_out(rootfs: Path) -> None:
    """A thread swaps a directory and a link to the outside, as a running agent could."""
    outside = rootfs.parent / "outside"
    (rootfs / "dir").mkdir()
    swaps: list[int] = []
    done = threading.Event()

    def swap() -> None:
        while not done.is_set():
            with contextlib.suppress(OSError):  # `write` may have made the directory in between
                os.rename(rootfs / "dir", rootfs / "spare")
                os.symlink(outside, rootfs / "dir")
                os.unlink(rootfs / "dir")
                os.rename(rootfs / "spare", rootfs / "dir")
                swaps.append(1)
                continue
            shutil.rmtree(rootfs / "spare", ignore_errors=True)

    thread = threading.Thread(target=swap)
    thread.start()
    try:
        for count in range(2000):
            try:
                write(rootfs, "/dir/file", str(count).encode())
            except VolumeError:
                continue
    finally:
        done.set()
        thread.join()
    assert swaps
    assert untouched(rootfs)
