"""What leaves in an archive comes back, whatever holds the volumes; and no archive does more than bring an office back."""

from __future__ import annotations

import dataclasses
import io
import os
import stat
import tarfile
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import zstandard
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from tenure.archive_head import Head, new_id, put_in_order, read_head
from tenure.errors import ArchiveError, DiskFull, InvalidArgument, TenureError
from tenure.export_keys import Key, new_key
from tenure.offices.archives import members
from tenure.offices.archives.arrival import Arrival
from tenure.offices.archives.frames import write_frames
from tenure.offices.archives.index import IndexWriter, Stand, read_stand
from tenure.offices.archives.making import changed_since
from tenure.offices.archives.manifest import END, JOURNAL, MANIFEST, Manifest, to_bytes
from tenure.offices.archives.members import Kind, Member, Members, encode_member, padding
from tenure.offices.archives.pack import Base, Packer
from tenure.offices.archives.seal import CHUNK_BYTES, TAG_BYTES
from tenure.offices.archives.unpack import Unpacker
from tenure.offices.archives.walk import Walk
from tenure.offices.models import Limits
from tenure.offices.tools import run_tool
from tenure.offices.volumes import BtrfsDriver, DirectoryDriver, VolumeDriver
from tenure.offices.volumes.btrfs import SUBVOLUME_INODE
from tenure.settings import Settings

ODD_NAMES = ("with space", "with\nline", "über", "\udcff\udcfe", "-rf", "a" * 255, ".hidden", "back\\slash")
HOLE_BYTES = 8 * 1024 * 1024


@pytest.fixture
async def pool(settings: Settings, unique_name: Callable[[str], str]) -> AsyncIterator[Path]:
    pool = settings.volumes_dir / unique_name("archives")
    pool.mkdir()
    yield pool
    for path in sorted(pool.iterdir()):
        driver = BtrfsDriver() if path.is_dir() and path.stat().st_ino == SUBVOLUME_INODE else DirectoryDriver()
        if await driver.exists(path):
            await driver.delete(path)
    for path in pool.iterdir():
        path.unlink()
    pool.rmdir()


@dataclass
class Made:
    """An archive, and what is known of it."""

    head: Head
    data: bytes
    index: Path
    packer: Packer


@dataclass
class Station:
    """A machine with volumes of one kind: exports from a volume that it has, and imports into new ones."""

    driver: VolumeDriver
    pool: Path
    made: dict[str, Made] = field(default_factory=dict)

    async def export(self, volume: Path, since: Made | None = None, key: Key | None = None) -> Made:
        head = Head(new_id(), "analyst", datetime.now(UTC), since.head.id if since else None)
        copy = self.pool / f"copy-{head.id}"
        await self.driver.snapshot(volume, copy)
        try:
            origin = await self.driver.origin(copy)
            stand = Stand(head.id, origin.volume, origin.generation) if origin else Stand(head.id)
            base = None
            if since is not None:
                base = Base(since.index, await changed_since(self.driver, copy, read_stand(since.index)))
            index = self.pool / f"{head.id}.index"
            with IndexWriter(index, stand) as writer:
                packer = Packer(copy, manifest_of(head), [b'{"run": 1}\n'], writer, base)
                data = b"".join(write_frames(packer.stream(), head, key))
                writer.commit()
        finally:
            await self.driver.delete(copy)
        return Made(head, data, index, packer)

    async def bring(self, name: str, *archives: bytes, key: Key | None = None) -> Path:
        volume = self.pool / name
        await self.driver.create_empty(volume)
        unpack(volume, archives, key)
        return volume


def manifest_of(head: Head) -> Manifest:
    created = head.created_at.isoformat()
    return Manifest(head.id, head.base, head.agent, created, "0", "test", "image", Limits(), ["pip"], "18", 10**6)


def unpack(volume: Path, archives: Iterable[bytes], key: Key | None = None, bytes_max: int = 2**40) -> Unpacker:
    unpacker = Unpacker(volume, lambda _: bytes_max)
    try:
        for data in archives:
            unpacker.apply(io.BytesIO(data).read, key)
    finally:
        unpacker.close()
    return unpacker


@pytest.fixture(params=["btrfs-btrfs", "btrfs-directory", "directory-btrfs"])
def stations(request: pytest.FixtureRequest, pool: Path) -> tuple[Station, Station]:
    drivers = {"btrfs": BtrfsDriver, "directory": DirectoryDriver}
    here, there = (Station(drivers[name](), pool) for name in request.param.split("-"))
    return here, there


def furnish(volume: Path) -> None:
    """Everything that a root filesystem can have."""
    for name in ("rootfs/home/agent", "rootfs/dev", "postgres/base", "objects/bucket"):
        (volume / name).mkdir(parents=True)
    home = volume / "rootfs/home/agent"
    for number, name in enumerate(ODD_NAMES):
        place = os.fsencode(home) + b"/" + os.fsencode(name)
        Path(os.fsdecode(place)).write_bytes(f"content {number}".encode())
        os.chown(place, 1000 + number, 2000 + number)
    (home / "setuid").write_bytes(b"x")
    os.chown(home / "setuid", 0, 0)
    (home / "setuid").chmod(0o4755)
    (home / "empty").touch()
    (home / "closed").mkdir(mode=0o000)
    (home / "sticky").mkdir()
    (home / "sticky").chmod(0o1777)
    (home / "one").write_bytes(os.urandom(200_000))
    os.link(home / "one", home / "two")
    os.link(home / "one", volume / "rootfs/three")
    (home / "link").symlink_to("/etc/shadow")
    os.lchown(home / "link", 1000, 1000)
    os.symlink(b"\xff\xfe", os.fsencode(home / "odd-link"))
    with (home / "sparse").open("wb") as file:
        file.seek(HOLE_BYTES)
        file.write(b"island" * 100)
        file.truncate(3 * HOLE_BYTES)
    (home / "hole").touch()
    os.truncate(home / "hole", HOLE_BYTES)
    os.setxattr(home / "one", "user.tenure.name", b"\x00\xffbytes")
    os.setxattr(home / "setuid", "security.capability", bytes.fromhex("0100000200040000000000000000000000000000"))
    os.setxattr(home / "sticky", "user.colour", b"blue")
    os.mkfifo(home / "pipe", 0o640)
    os.mknod(volume / "rootfs/dev/null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    (volume / "postgres/base/1").write_bytes(os.urandom(300_000))
    (volume / "postgres/PG_VERSION").write_text("18\n")
    (volume / "objects/bucket/file").write_bytes(b"an object")
    (volume / "postgres.secret").write_text("secret")
    for at, path in enumerate(sorted(volume.rglob("*"), key=os.fsencode, reverse=True)):
        os.utime(path, ns=(1, 1_600_000_000_123_456_789 + at), follow_symlinks=False)


Facts = dict[str, tuple[object, ...]]


def facts_of(volume: Path) -> Facts:
    """All that can be known of what is in a volume, by path."""
    found: Facts = {}
    first_names: dict[int, str] = {}
    for entry in Walk(volume):
        status = entry.status
        content: object = None
        if entry.kind is Kind.FILE:
            descriptor = entry.open()
            with os.fdopen(descriptor, "rb") as file:
                content = hash(file.read())
        elif entry.kind is Kind.SYMLINK:
            content = entry.target()
        several = entry.kind is Kind.FILE and status.st_nlink > 1
        found[entry.path] = (
            status.st_mode,
            status.st_uid,
            status.st_gid,
            status.st_mtime_ns,
            status.st_size if entry.kind is not Kind.DIRECTORY else None,
            status.st_rdev,
            tuple(sorted(entry.xattrs().items())),
            content,
            first_names.setdefault(status.st_ino, entry.path) if several else None,
        )
    return found


async def test_everything_comes_back_as_it_was(stations: tuple[Station, Station]) -> None:
    here, there = stations
    await here.driver.create_empty(here.pool / "office")
    furnish(here.pool / "office")
    wanted = facts_of(here.pool / "office")
    made = await here.export(here.pool / "office")
    arrived = await there.bring("arrived", made.data)
    assert facts_of(arrived) == wanted
    assert len(wanted) > 30
    sparse = (arrived / "rootfs/home/agent/sparse").stat()
    assert sparse.st_size == 3 * HOLE_BYTES
    assert sparse.st_blocks * 512 < HOLE_BYTES


def change(volume: Path) -> None:
    """Every way in which a tree can change."""
    home = volume / "rootfs/home/agent"
    with (home / "one").open("r+b") as file:  # also two, three
        file.seek(70_000)
        file.write(b"changed in the middle")
    (home / "two").unlink()
    (home / "two").write_bytes(b"a file of its own now")
    (home / "with space").unlink()
    (home / "empty").write_bytes(b"no longer")
    (home / "setuid").chmod(0o755)
    os.chown(home / "closed", 5, 6)
    (home / "link").unlink()
    (home / "link").mkdir()
    (home / "link/in it").write_text("x")
    (home / "sticky").rmdir()
    (home / "sticky").symlink_to("elsewhere")
    with (home / "sparse").open("r+b") as file:
        file.truncate(HOLE_BYTES)  # the island is gone
        file.truncate(2 * HOLE_BYTES)
    (home / "hole").write_bytes(b"filled")
    os.setxattr(home / "empty", "user.new", b"1")
    (volume / "rootfs/moved").mkdir()
    os.rename(home / "über", volume / "rootfs/moved/renamed")
    os.rename(volume / "rootfs/dev", volume / "rootfs/moved/dev")
    with (volume / "postgres/base/1").open("r+b") as file:
        file.write(b"y" * 10)
        file.truncate(250_000)
    (volume / "objects/bucket/file").unlink()


async def test_what_changed_is_all_that_an_increment_holds_and_all_that_it_takes(
    stations: tuple[Station, Station],
) -> None:
    here, there = stations
    await here.driver.create_empty(here.pool / "office")
    office = here.pool / "office"
    furnish(office)
    whole = await here.export(office)
    same = await here.export(office, whole)
    assert same.packer.tally.members == 0
    change(office)
    changed = await here.export(office, same)
    (office / "rootfs/last").write_bytes(b"!")
    last = await here.export(office, changed)
    assert 0 < len(last.data) < len(changed.data) < len(whole.data)
    assert changed.packer.tally.content_bytes < 64 * 1024 * 10
    arrived = await there.bring("arrived", whole.data, same.data, changed.data, last.data)
    assert facts_of(arrived) == facts_of(office)


async def test_only_changed_parts_of_a_large_file_travel(pool: Path) -> None:
    here = Station(BtrfsDriver(), pool)
    await here.driver.create_empty(pool / "office")
    furnish(pool / "office")
    table = pool / "office/postgres/base/1"
    table.write_bytes(os.urandom(16 * 1024 * 1024))
    whole = await here.export(pool / "office")
    with table.open("r+b") as file:
        file.seek(5_000_000)
        file.write(b"a row")
    changed = await here.export(pool / "office", whole)
    assert changed.packer.tally.content_bytes == 64 * 1024
    arrived = await here.bring("arrived", whole.data, changed.data)
    assert (arrived / "postgres/base/1").read_bytes() == table.read_bytes()


async def test_btrfs_tells_what_changed_without_reading_the_rest(pool: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here = Station(BtrfsDriver(), pool)
    await here.driver.create_empty(pool / "office")
    furnish(pool / "office")
    # Else all is of the snapshot's own transaction.
    await run_tool(["btrfs", "filesystem", "sync", pool], timeout_s=60, raises=TenureError)
    whole = await here.export(pool / "office")
    (pool / "office/rootfs/new").write_text("x")
    opened: list[str] = []
    real_open = os.open

    def watched(path: str, flags: int, *rest: object, **named: object) -> int:
        if not flags & os.O_DIRECTORY:
            opened.append(str(path))
        return real_open(path, flags, *rest, **named)  # type: ignore[arg-type]

    monkeypatch.setattr("tenure.offices.archives.walk.os.open", watched)
    made = await here.export(pool / "office", whole)
    assert [path for path in opened if "/" not in path] == ["new"]
    assert made.packer.tally.members == 2  # and the directory that it is in


async def test_an_office_that_was_put_back_is_compared_by_content(pool: Path) -> None:
    """Its volume is another one then, in which old files have old numbers of change."""
    here = Station(BtrfsDriver(), pool)
    await here.driver.create_empty(pool / "office")
    furnish(pool / "office")
    await here.driver.snapshot(pool / "office", pool / "before")
    (pool / "office/rootfs/home/agent/empty").write_bytes(b"later")
    whole = await here.export(pool / "office")
    await here.driver.delete(pool / "office")
    await here.driver.create(pool / "before", pool / "office")
    changed = await here.export(pool / "office", whole)
    arrived = await here.bring("arrived", whole.data, changed.data)
    assert facts_of(arrived) == facts_of(pool / "office")
    assert (arrived / "rootfs/home/agent/empty").read_bytes() == b""


async def test_an_archive_is_a_tar_that_other_programs_read(pool: Path) -> None:
    here = Station(BtrfsDriver(), pool)
    await here.driver.create_empty(pool / "office")
    furnish(pool / "office")
    made = await here.export(pool / "office")
    head_bytes = 8 + int.from_bytes(made.data[4:8], "little")
    content = zstandard.ZstdDecompressor().stream_reader(made.data[head_bytes:]).read()
    with tarfile.open(fileobj=io.BytesIO(content)) as archive:
        names = archive.getnames()
        table = archive.extractfile("postgres/base/1")
        assert table is not None
        assert table.read() == (pool / "office/postgres/base/1").read_bytes()
    assert names[:2] == [MANIFEST, JOURNAL]
    assert "rootfs/home/agent/\udcff\udcfe" in names


async def test_links_of_the_agent_are_never_followed_by_an_export(pool: Path) -> None:
    here = Station(BtrfsDriver(), pool)
    await here.driver.create_empty(pool / "office")
    (pool / "office/rootfs").mkdir()
    (pool / "office/objects").mkdir()
    (pool / "office/rootfs/etc").symlink_to("/etc")
    (pool / "office/rootfs/shadow").symlink_to("/etc/shadow")
    (pool / "office/postgres").symlink_to("/etc")
    made = await here.export(pool / "office")
    assert made.packer.tally.content_bytes == 0
    with pytest.raises(ArchiveError, match="wrong kind"):  # and it would not come back as a database
        await here.bring("arrived", made.data)


# --- encryption -----------------------------------------------------------------------------------------------------------
def small(head: Head, *more: Member, content: bytes = b"", ends: bool = True, journal: bytes = b"") -> Iterator[bytes]:
    """The tar stream of a small office, with some members of a test's own; the last of them has `content`."""
    own = [Member("objects", Kind.DIRECTORY, 0o755), Member("rootfs", Kind.DIRECTORY, 0o755), *more]
    yield from document(MANIFEST, to_bytes(manifest_of(head)))
    yield from document(JOURNAL, journal)
    for member in own:
        yield encode_member(member)
        if member is own[-1]:
            yield content + padding(replace(member, size=len(content), segments=None))
    if ends:
        yield from document(END, b'{"members": %d}' % len(own))
        yield members.END


def document(path: str, content: bytes) -> Iterator[bytes]:
    member = Member(path, Kind.FILE, size=len(content))
    yield encode_member(member)
    yield content + padding(member)


def a_head(base: str | None = None) -> Head:
    return Head(new_id(), "analyst", datetime.now(UTC), base)


def archive(*more: Member, content: bytes = b"", key: Key | None = None, head: Head | None = None) -> bytes:
    head = head or a_head()
    return b"".join(write_frames(small(head, *more, content=content), head, key))


@pytest.fixture
def key() -> Key:
    return new_key()


@pytest.fixture
def sealed(key: Key) -> tuple[int, bytes]:
    """(length of the head, an encrypted archive of several chunks)."""
    content = os.urandom(3 * CHUNK_BYTES + 1000)
    data = archive(Member("rootfs/big", Kind.FILE, size=len(content)), content=content, key=key)
    return 8 + int.from_bytes(data[4:8], "little"), data


def test_an_encrypted_archive_shows_nothing_and_opens_with_its_key(
    tmp_path: Path, key: Key, sealed: tuple[int, bytes]
) -> None:
    _, data = sealed
    assert b"rootfs" not in data
    assert key.secret not in data
    unpack(tmp_path, [data], key)
    assert (tmp_path / "rootfs/big").stat().st_size == 3 * CHUNK_BYTES + 1000


def test_a_wrong_key_says_so_and_a_missing_one_too(tmp_path: Path, key: Key, sealed: tuple[int, bytes]) -> None:
    other = new_key()
    with pytest.raises(ArchiveError, match=f"the wrong one: .* needs {key.id}, and this is {other.id}"):
        unpack(tmp_path, [sealed[1]], other)
    with pytest.raises(ArchiveError, match="no key was given"):
        unpack(tmp_path, [sealed[1]])
    assert list(tmp_path.iterdir()) == []


def test_a_change_of_any_chunk_is_refused(tmp_path: Path, key: Key, sealed: tuple[int, bytes]) -> None:
    start, data = sealed
    size = CHUNK_BYTES + TAG_BYTES
    for number, at in enumerate(range(start, len(data), size)):
        for place in (at, min(at + size, len(data)) - 1):
            changed = bytearray(data)
            changed[place] ^= 1
            with pytest.raises(ArchiveError, match=f"chunk {number} does not fit"):
                unpack(tmp_path, [bytes(changed)], key)


def test_chunks_in_another_order_or_left_out_are_refused(tmp_path: Path, key: Key, sealed: tuple[int, bytes]) -> None:
    start, data = sealed
    size = CHUNK_BYTES + TAG_BYTES
    chunks = [data[at : at + size] for at in range(start, len(data), size)]
    first, second, *rest = chunks
    assert len(rest) == 2
    for wrong in (
        [second, first, *rest],
        [first, *rest],
        [first, second, second, *rest],
        [first, second],
        [*chunks, first],
    ):
        with pytest.raises(ArchiveError, match="changed or cut off"):
            unpack(tmp_path, [data[:start] + b"".join(wrong)], key)


def test_a_changed_head_is_refused(tmp_path: Path, key: Key, sealed: tuple[int, bytes]) -> None:
    _, data = sealed
    with pytest.raises(ArchiveError, match="head of the archive was changed"):
        unpack(tmp_path, [data.replace(b'"analyst"', b'"analysT"'.lower().replace(b"t", b"x"), 1)], key)


@pytest.mark.parametrize("encrypted", [False, True])
def test_an_archive_cut_off_anywhere_is_refused(tmp_path: Path, key: Key, encrypted: bool) -> None:
    own = key if encrypted else None
    data = archive(Member("rootfs/file", Kind.FILE, size=5), content=b"hello", key=own)
    for end in range(len(data)):
        with pytest.raises(ArchiveError):
            unpack(tmp_path, [data[:end]], own)
    with pytest.raises(ArchiveError):
        unpack(tmp_path, [data + b"\0"], own)
    unpack(tmp_path, [data], own)


def test_a_change_of_any_byte_is_refused(tmp_path: Path) -> None:
    data = archive(Member("rootfs/file", Kind.FILE, size=5), content=b"hello")
    for at in range(len(data)):
        changed = bytearray(data)
        changed[at] ^= 0x10
        with pytest.raises(ArchiveError):
            unpack(tmp_path, [bytes(changed)])


# --- hostile archives -------------------------------------------------------------------------------------------------------
@pytest.fixture
def outside(tmp_path: Path) -> Path:
    """What an archive would like to reach."""
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "victim").write_text("mine")
    return outside


@pytest.fixture
def volume(tmp_path: Path, outside: Path) -> Path:
    volume = tmp_path / "volume"
    volume.mkdir()
    return volume


@pytest.mark.parametrize(
    "path",
    [
        "../outside/victim",
        "rootfs/../../outside/victim",
        "/etc/cron.d/evil",
        "rootfs//evil",
        "rootfs/./evil",
        "office.json",
        ".volume.json",
        "elsewhere/evil",
        "tenure/evil",
        "",
        "..",
    ],
)
def test_names_that_lead_elsewhere_are_refused(volume: Path, outside: Path, path: str) -> None:
    with pytest.raises(ArchiveError):
        unpack(volume, [archive(Member(path, Kind.FILE, size=4), content=b"evil")])
    assert (outside / "victim").read_text() == "mine"
    assert sorted(os.listdir(volume.parent)) == ["outside", "volume"]


@pytest.mark.parametrize("kind", [Kind.FILE, Kind.DIRECTORY, Kind.SYMLINK, Kind.GONE, Kind.HARD_LINK])
def test_nothing_is_written_or_removed_through_a_link(volume: Path, outside: Path, kind: Kind) -> None:
    for target in (str(outside), "../../outside"):
        link = Member("rootfs/way", Kind.SYMLINK, target=target)
        evil = Member("rootfs/way/victim", kind, mode=0o777, target="rootfs/way" if kind is Kind.HARD_LINK else "x")
        data = archive(link, evil)
        if kind is Kind.GONE:  # nothing of the office is there: nothing to be removed
            unpack(volume, [data])
        else:
            with pytest.raises(ArchiveError):
                unpack(volume, [data])
        assert (outside / "victim").read_text() == "mine"
        assert (outside / "victim").stat().st_mode & 0o777 != 0o777


def test_a_file_is_never_written_through_a_link_of_its_name(volume: Path, outside: Path) -> None:
    link = Member("rootfs/way", Kind.SYMLINK, target=str(outside / "victim"))
    unpack(volume, [archive(link, Member("rootfs/way", Kind.FILE, size=4), content=b"evil")])
    assert (outside / "victim").read_text() == "mine"
    assert (volume / "rootfs/way").read_text() == "evil"


def test_a_patch_is_never_written_through_a_link(volume: Path, outside: Path) -> None:
    first = a_head()
    whole = archive(Member("rootfs/way", Kind.SYMLINK, target=str(outside / "victim")), head=first)
    patch = Member("rootfs/way", Kind.FILE, size=4, segments=[(0, 4)], patch=True)
    with pytest.raises(ArchiveError):
        unpack(volume, [whole, archive(patch, content=b"evil", head=a_head(first.id))])
    assert (outside / "victim").read_text() == "mine"


@pytest.mark.parametrize(
    "target",
    ["../outside/victim", "/etc/passwd", "postgres/base", "rootfs", "rootfs/missing", "rootfs/way/victim"],
)
def test_a_hard_link_leads_to_a_file_of_the_root_only(volume: Path, outside: Path, target: str) -> None:
    link = Member("rootfs/way", Kind.SYMLINK, target=str(outside))
    with pytest.raises(ArchiveError):
        unpack(volume, [archive(link, Member("rootfs/evil", Kind.HARD_LINK, target=target))])
    assert not (volume / "rootfs/evil").exists()


def test_no_file_has_names_in_root_and_database(volume: Path) -> None:
    """What stands in one of its names, an agent could write by the other."""
    parent, file = Member("postgres", Kind.DIRECTORY, 0o700), Member("postgres/PG_VERSION", Kind.FILE)
    with pytest.raises(ArchiveError, match="out of the office's root"):
        unpack(volume, [archive(parent, file, Member("rootfs/evil", Kind.HARD_LINK, target="postgres/PG_VERSION"))])


@pytest.mark.parametrize("root", ["postgres", "objects"])
@pytest.mark.parametrize("kind", [Kind.SYMLINK, Kind.HARD_LINK, Kind.FIFO, Kind.CHARACTER_DEVICE])
def test_what_the_host_reads_has_plain_files_only(volume: Path, root: str, kind: Kind) -> None:
    file = Member("rootfs/file", Kind.FILE)
    parent = Member(root, Kind.DIRECTORY, 0o700)
    evil = Member(f"{root}/evil", kind, target="rootfs/file", device=(1, 3))
    with pytest.raises(ArchiveError, match="only files and directories"):
        unpack(volume, [archive(file, parent, evil)])


def test_a_database_brings_no_configuration(volume: Path) -> None:
    """What stands in it would be run on the host."""
    parent = Member("postgres", Kind.DIRECTORY, 0o700)
    evil = Member("postgres/postgresql.auto.conf", Kind.FILE, size=4)
    unpack(volume, [archive(parent, evil, content=b"evil")])
    assert list((volume / "postgres").iterdir()) == []


@pytest.mark.parametrize("device", [(8, 0), (1, 1), (1, 4), (10, 200)])
@pytest.mark.parametrize("kind", [Kind.CHARACTER_DEVICE, Kind.BLOCK_DEVICE])
def test_devices_of_a_machine_are_refused(volume: Path, kind: Kind, device: tuple[int, int]) -> None:
    with pytest.raises(ArchiveError, match="device"):
        unpack(volume, [archive(Member("rootfs/disk", kind, 0o666, device=device))])


def test_more_than_an_office_may_have_is_not_written(volume: Path) -> None:
    """A bomb: some kilobytes that become gigabytes."""
    head = a_head()

    def bomb() -> Iterator[bytes]:
        size = 2**28
        yield from small(head, Member("rootfs/zeros", Kind.FILE, size=size), ends=False)
        for _ in range(size // 2**20):
            yield bytes(2**20)

    data = b"".join(write_frames(bomb(), head, None))
    assert len(data) < 64 * 1024
    with pytest.raises(ArchiveError, match="more than the disk limit"):
        unpack(volume, [data], bytes_max=16 * 2**20)
    assert (volume / "rootfs/zeros").stat().st_blocks * 512 <= 17 * 2**20


def test_countless_names_are_not_made(volume: Path) -> None:
    head = a_head()
    names = [Member(f"rootfs/{number}", Kind.DIRECTORY, 0o755) for number in range(300)]
    with pytest.raises(ArchiveError, match="more than the disk limit"):
        unpack(volume, [b"".join(write_frames(small(head, *names), head, None))], bytes_max=2**17)


@pytest.mark.parametrize(
    "change",
    [
        {"limits": Limits(disk_gb=float("inf"))},
        {"limits": Limits(cpus=-1)},
        {"agent": "../evil"},
        {"image": "../../evil"},
        {"image": ".."},
        {"egress": ["x" * 10_000]},
        {"volume_bytes": -1},
        {"id": "another"},
    ],
    ids=str,
)
def test_a_manifest_that_makes_no_sense_is_refused(volume: Path, change: dict[str, object]) -> None:
    head = a_head()
    manifest = dataclasses.replace(manifest_of(head), **change)  # type: ignore[arg-type]
    stream = [
        *document(MANIFEST, to_bytes(manifest)),
        *document(JOURNAL, b""),
        *document(END, b'{"members": 0}'),
        members.END,
    ]
    with pytest.raises(ArchiveError):
        unpack(volume, [b"".join(write_frames(stream, head, None))])


def test_an_archive_that_lacks_what_it_announces_is_refused(volume: Path) -> None:
    head = a_head()
    stream = [*small(head, ends=False), *document(END, b'{"members": 3}'), members.END]
    with pytest.raises(ArchiveError, match="does not have all"):
        unpack(volume, [b"".join(write_frames(stream, head, None))])


@given(st.binary(min_size=1, max_size=1500), st.integers(0, 4000))
@hypothesis_settings(max_examples=300, deadline=None)
def test_no_bytes_do_anything_but_raise_our_error(junk: bytes, at: int) -> None:
    """Of the tar stream inside: the frames around it are checked before, so only somebody with the key gets so far."""
    head = Head("exp_0123456789abcdef", "analyst", datetime(2026, 1, 1, tzinfo=UTC))
    stream = bytearray(b"".join(small(head, Member("rootfs/f", Kind.FILE, size=3), content=b"abc")))
    at %= len(stream)
    stream[at : at + len(junk)] = junk
    source = io.BytesIO(bytes(stream))

    def read(size: int) -> bytes:
        data = source.read(size)
        if len(data) < size:
            raise ArchiveError("It ends.")
        return data

    reader = Members(read)
    try:
        while (member := reader.next()) is not None:
            assert sum(map(len, reader.content())) <= len(stream)
            assert member.size >= 0
    except TenureError:
        pass


@given(
    st.text(st.characters(exclude_characters="\0", exclude_categories=()), min_size=1, max_size=300).filter(
        lambda text: not text.endswith("/")
    ),
    st.dictionaries(st.sampled_from(["user.a", "user.b c", "trusted.x"]), st.binary(max_size=300)),
    st.integers(-(10**18), 4 * 10**18),
    st.integers(0, 0o7777),
)
@hypothesis_settings(max_examples=300, deadline=None)
def test_what_a_member_says_is_what_is_read(name: str, xattrs: dict[str, bytes], mtime_ns: int, mode: int) -> None:
    path = os.fsdecode(name.encode("utf-8", "replace"))
    member = Member(path, Kind.FILE, mode, 12345678, 2**31, mtime_ns, 7, xattrs=xattrs)
    source = io.BytesIO(encode_member(member) + b"content" + padding(member) + members.END)
    reader = Members(source.read)
    assert reader.next() == member
    assert b"".join(reader.content()) == b"content"
    assert reader.next() is None


# --- this machine ---------------------------------------------------------------------------------------------------------
@pytest.fixture
def image(tmp_path: Path) -> Path:
    """An image with PostgreSQL 18, as `manifest_of` says."""
    image = tmp_path / "image"
    (image / "postgres").mkdir(parents=True)
    (image / "postgres/PG_VERSION").write_text("18\n")
    (image / "postgres/pg_hba.conf").write_text("of this machine")
    return image


def arrive(volume: Path, image: Path, data: bytes, check_egress: Callable[[Any], Any] = tuple) -> Arrival:
    arrival = Arrival(volume, image, check_egress)
    arrival.unpack([io.BytesIO(data).read], None)
    return arrival


def test_a_database_of_another_postgresql_is_told_before_anything_is_written(volume: Path, image: Path) -> None:
    (image / "postgres/PG_VERSION").write_text("17\n")
    with pytest.raises(ArchiveError, match="PostgreSQL 18, and here is PostgreSQL 17"):
        arrive(volume, image, archive())
    assert list(volume.iterdir()) == []


def test_an_office_that_does_not_fit_is_told_before_anything_is_written(volume: Path, image: Path) -> None:
    head = a_head()
    manifest = to_bytes(replace(manifest_of(head), volume_bytes=2**60))
    stream = [*document(MANIFEST, manifest), *document(JOURNAL, b""), *document(END, b'{"members": 0}'), members.END]
    with pytest.raises(DiskFull, match="GB free"):
        arrive(volume, image, b"".join(write_frames(stream, head, None)))
    assert list(volume.iterdir()) == []


def test_egress_that_is_not_known_here_is_refused_before_anything_is_written(volume: Path, image: Path) -> None:
    def refuse(entries: list[str]) -> None:
        raise InvalidArgument(f"There is no preset {entries}.")

    with pytest.raises(InvalidArgument, match="pip"):
        arrive(volume, image, archive(), refuse)
    assert list(volume.iterdir()) == []


def test_a_database_gets_the_configuration_of_this_machine(volume: Path, image: Path) -> None:
    parent, evil = (
        Member("postgres", Kind.DIRECTORY, 0o700, 1234, 1234),
        Member("postgres/pg_hba.conf", Kind.FILE, size=4),
    )
    arrive(volume, image, archive(parent, evil, content=b"evil"))
    found = volume / "postgres/pg_hba.conf"
    assert found.read_text() == "of this machine"
    assert (found.stat().st_uid, found.stat().st_mode & 0o777) == (1234, 0o600)


# --- chains -----------------------------------------------------------------------------------------------------------------
def test_a_chain_is_read_in_its_order_and_nothing_may_be_missing(volume: Path) -> None:
    one, other = a_head(), a_head()
    two = a_head(one.id)
    three = a_head(two.id)
    assert put_in_order([(head.id, head.base) for head in (three, one, two)]) == [1, 2, 0]
    for wrong, why in (
        ([three, one], "continues"),
        ([two], "which is missing"),
        ([two, three], "which is missing"),
        ([one, other], "continue the same"),
        ([one, two, a_head(one.id)], "continue the same"),
    ):
        with pytest.raises(ArchiveError, match=why):
            put_in_order([(head.id, head.base) for head in wrong])
    with pytest.raises(ArchiveError, match="which is missing"):
        unpack(volume, [archive(head=two)])
    with pytest.raises(ArchiveError, match=f"continues {two.id}, not {one.id}"):
        unpack(volume, [archive(head=one), archive(head=three)])


def test_the_head_is_known_without_the_key(key: Key) -> None:
    head = a_head("exp_0123456789abcdef")
    data = archive(key=key, head=head)
    found = read_head(io.BytesIO(data).read)
    assert (found.id, found.base, found.agent, found.key_id) == (head.id, head.base, "analyst", key.id)
