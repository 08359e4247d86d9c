"""What an office reaches by name beside its own services comes and goes at once, and nothing that went can be reached."""

from __future__ import annotations

import asyncio
import contextlib
import stat
import tempfile
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from homes import free_port
from tenure.errors import Conflict, ServerUnreachable
from tenure.offices.door.door import Door
from tenure.offices.log import OfficeLog
from tenure.offices.models import Limits, OfficeRecord
from tenure.offices.neighbourhood import ADDRESSES, Neighbourhood, acceptable, assign
from tenure.offices.neighbours import NEIGHBOURS_MAX, Neighbour
from tenure.offices.office import Office, OfficeParts
from tenure.offices.rest import Tier
from tenure.offices.sandboxes.gvisor import GvisorDriver
from tenure.offices.spares import SpareVolumes
from tenure.offices.volumes import detect_driver
from tenure.settings import Settings
from tenure.setup import Image
from tenure.use import Use
from test_supervisor import Healthy

PATIENCE_S = 20.0
FORWARD_PATIENCE_S = 20.0
"""How long `officed` dials for a client: FORWARD_PATIENCE_MS."""
HOSTS = st.sets(st.from_regex(r"[a-z]{1,3}\.[a-z]{1,2}", fullmatch=True), max_size=NEIGHBOURS_MAX)


# --- addresses ---------------------------------------------------------------------------------------------------------
@given(before=HOSTS, after=HOSTS)
def test_each_host_has_an_address_of_its_own_and_keeps_it(before: set[str], after: set[str]) -> None:
    first = assign(before, {})
    second = assign(after, first)
    assert set(second) == after
    assert len(set(second.values())) == len(after)
    assert set(second.values()) <= set(ADDRESSES)
    assert all(second[host] == first[host] for host in before & after)
    assert assign(sorted(before, reverse=True), {}) == first, "a server that starts anew comes to the same"


def test_who_comes_later_takes_nobodys_address() -> None:
    names = [f"h{number}.db" for number in range(NEIGHBOURS_MAX + 1)]
    wanted: dict[str, str] = {}
    for later in names:
        address = assign([later], {})[later]
        if (earlier := wanted.setdefault(address, later)) != later:  # two that would have the same one
            break
    else:
        raise AssertionError("more names than addresses want different ones")
    for one, other in ((earlier, later), (later, earlier)):
        first = assign([one], {})
        assert assign([one, other], first)[one] == first[one]


def test_there_is_an_address_for_the_last_one_too() -> None:
    hosts = [f"h{number}.db" for number in range(NEIGHBOURS_MAX)]
    assert len(set(assign(hosts, {}).values())) == NEIGHBOURS_MAX


@pytest.mark.parametrize(
    "host",
    ["", "db", "api", "localhost", "a.b\n127.0.0.2 x", "a b.db", "A.db", "-a.db", "1.db", ".db", "a..db", "a.db."],
)
def test_a_name_that_could_be_mistaken_is_none(host: str) -> None:
    kept, wrong = acceptable([_nobody(host, 1), _nobody("sales.db", 5432)])
    assert list(kept) == [("sales.db", 5432)]
    assert len(wrong) == 1


def test_an_office_has_so_many_neighbours_and_one_of_each_name() -> None:
    many = [_nobody(f"h{number}.db", 1) for number in range(NEIGHBOURS_MAX)]
    kept, wrong = acceptable([*many, _nobody("h0.db", 1), _nobody("more.db", 1), _nobody("h1.db", 0)])
    assert list(kept.values()) == many
    assert len(wrong) == 3


def _nobody(host: str, port: int) -> Neighbour:
    async def serve(path: Path, use: Use) -> Echo:
        raise AssertionError("it is not served")

    return Neighbour(host, port, serve)


# --- someone to talk to ------------------------------------------------------------------------------------------------
class Echo:
    """Says `word` to whoever comes, then what it hears."""

    def __init__(self, word: str) -> None:
        self.word, self.connected = word, set[asyncio.StreamWriter]()
        self._server: asyncio.Server | None = None

    async def serve(self, path: Path) -> Echo:
        path.unlink(missing_ok=True)
        self._server = await asyncio.start_unix_server(self._arrived, path)
        path.chmod(0o666)
        return self

    async def _arrived(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connected.add(writer)
        with contextlib.suppress(ConnectionError, asyncio.CancelledError):
            writer.write(self.word.encode() + b"\n")
            while data := await reader.read(1000):
                writer.write(data)
        self.connected.discard(writer)
        writer.close()

    async def close(self) -> None:
        if self._server is not None:
            self._server.close()
        for writer in list(self.connected):
            writer.transport.abort()


@dataclass
class Source:
    """Whom it names are the neighbours, by `host:port`; each says its own name."""

    names: list[str] = field(default_factory=list[str])
    away: bool = False
    unservable: set[str] = field(default_factory=set[str])
    served: dict[str, Echo] = field(default_factory=dict[str, Echo])

    async def neighbours(self, agent: str) -> Sequence[Neighbour]:
        if self.away:
            raise ServerUnreachable("PostgreSQL is away.")
        return [self._neighbour(name) for name in self.names]

    def _neighbour(self, name: str) -> Neighbour:
        host, _, port = name.partition(":")

        async def serve(path: Path, use: Use) -> Echo:
            if name in self.unservable:
                raise Conflict("not now")
            self.served[name] = await Echo(name).serve(path)
            return self.served[name]

        return Neighbour(host, int(port), serve)


# --- outside -----------------------------------------------------------------------------------------------------------
@pytest.fixture
def directory() -> Iterator[Path]:
    """Short: sockets lie in it."""
    with tempfile.TemporaryDirectory(prefix="tenure-") as name:
        yield Path(name)


async def reach(path: Path) -> bytes:
    reader, writer = await asyncio.open_unix_connection(path)
    word = await reader.readline()
    writer.close()
    return word


async def test_a_neighbour_that_went_is_served_no_more_and_its_connections_are_broken(directory: Path) -> None:
    source = Source(["sales.db:5432", "crm.db:5432", "crm.db:3306"])
    log = OfficeLog(directory / "log")
    neighbourhood = Neighbourhood("analyst", directory, Use(), log, [source])
    await neighbourhood.settle()
    assert neighbourhood.forwards == (), "nothing is served before the doorway is open"
    (directory / "n9-1.sock").touch()
    await neighbourhood.open()
    assert not (directory / "n9-1.sock").exists(), "a dead server's"
    sockets = dict(neighbourhood.forwards)
    assert len(sockets) == 3
    assert set(neighbourhood.hosts) == {"crm.db", "sales.db"}
    path = directory / sockets[f"{neighbourhood.hosts['crm.db']}:3306"]
    reader, writer = await asyncio.open_unix_connection(path)
    assert await reader.readline() == b"crm.db:3306\n"
    source.names = ["crm.db:5432", "new.db:1"]
    await neighbourhood.settle()
    assert await reader.read() == b""
    writer.close()
    assert not path.exists()
    words = sorted([await reach(directory / name) for _, name in neighbourhood.forwards])
    assert words == [b"crm.db:5432\n", b"new.db:1\n"]
    await neighbourhood.close()
    assert list(directory.glob("*.sock")) == []
    await neighbourhood.settle()
    assert neighbourhood.forwards == ()


async def test_a_source_that_fails_has_no_neighbours_and_the_others_have(directory: Path) -> None:
    broken, other = Source(["sales.db:5432"]), Source(["crm.db:5432", "x.db:1"], unservable={"x.db:1"})
    log = OfficeLog(directory / "log")
    neighbourhood = Neighbourhood("analyst", directory, Use(), log, [broken, other])
    await neighbourhood.open()
    assert [host for host, _ in _places(neighbourhood)] == ["crm.db", "sales.db"]
    broken.away = True
    await neighbourhood.settle()
    assert [host for host, _ in _places(neighbourhood)] == ["crm.db"]
    broken.away, other.unservable = False, set()
    await neighbourhood.settle()
    assert [host for host, _ in _places(neighbourhood)] == ["crm.db", "sales.db", "x.db"]
    text = (directory / "log").read_text()
    assert "PostgreSQL is away." in text
    assert "x.db:1 cannot be served: not now" in text
    await neighbourhood.close()


def _places(neighbourhood: Neighbourhood) -> list[tuple[str, str]]:
    hosts = {address: host for host, address in neighbourhood.hosts.items()}
    return sorted((hosts[place.partition(":")[0]], place) for place, _ in neighbourhood.forwards)


# --- inside: officed ---------------------------------------------------------------------------------------------------
class Inside:
    """A door with an `officed` behind it as a process of the host."""

    def __init__(self, officed: Path, directory: Path) -> None:
        self.directory, self.hosts = directory, directory / "hosts"
        self.door = Door("bench", directory)
        self._officed = officed

    async def boot(self, *forwards: str) -> None:
        self.hosts.write_text("before\n")
        await self.door.open()
        more = [word for forward in forwards for word in ("--forward", forward)]
        self.process = await asyncio.create_subprocess_exec(
            self._officed, "--door", self.directory / "door.sock", "--jobs", self.directory / "jobs",
            "--hosts", self.hosts, *more,
        )  # fmt: skip
        await self.door.wait_open()

    async def end(self) -> None:
        self.process.kill()
        await self.process.wait()
        await self.door.close()


@pytest.fixture
async def inside(settings: Settings, directory: Path) -> AsyncIterator[Inside]:
    inside = Inside(settings.officed_dir / "officed", directory)
    yield inside
    await inside.end()


async def greeting(address: str) -> bytes:
    host, _, port = address.partition(":")
    async with asyncio.timeout(PATIENCE_S):
        reader, writer = await asyncio.open_connection(host, int(port))
        word = await reader.readline()
        writer.close()
    return word


async def refuses(address: str) -> bool:
    try:
        await greeting(address)
    except ConnectionRefusedError:
        return True
    return False


async def test_forwards_come_and_go_with_what_the_server_declares(inside: Inside) -> None:
    lasting, one, two = (f"127.0.{number}.1:{free_port()}" for number in (0, 1, 1))
    fixed, first, second = [await Echo(name).serve(inside.directory / f"{name}.sock") for name in ("fixed", "a", "b")]
    await inside.boot(f"{lasting}={inside.directory / 'fixed.sock'}")
    assert await greeting(lasting) == b"fixed\n"
    assert await refuses(one)
    assert await inside.door.declare_forwards([(one, "a.sock"), (two, "b.sock")], "1\n") == ()
    assert [await greeting(address) for address in (one, two)] == [b"a\n", b"b\n"]
    assert inside.hosts.read_text() == "1\n"
    reader, writer = await asyncio.open_connection(*one.split(":"))
    other, other_writer = await asyncio.open_connection(*two.split(":"))
    assert [await reader.readline(), await other.readline()] == [b"a\n", b"b\n"]

    assert await inside.door.declare_forwards([(two, "b.sock")], "2\n") == ()
    assert await reader.read() == b"", "a connection of one that went is broken"
    assert await refuses(one)
    other_writer.write(b"goes on\n")
    assert await other.readline() == b"goes on\n"
    assert inside.hosts.read_text() == "2\n"

    assert await inside.door.declare_forwards([(two, "a.sock")], "2\n") == ()
    assert await other.read() == b"", "another one at the same address is another one"
    assert await greeting(two) == b"a\n"
    assert await inside.door.declare_forwards([], "") == ()
    assert await refuses(two)
    assert await greeting(lasting) == b"fixed\n"
    for end in (writer, other_writer):
        end.close()
    for echo in (fixed, first, second):
        await echo.close()


async def test_one_that_waits_for_a_server_that_is_away_ends_with_its_forward(inside: Inside) -> None:
    """Nobody serves the socket yet, and officed is patient; but not with one that went."""
    address = f"127.0.1.1:{free_port()}"
    await inside.boot()
    threads = Path(f"/proc/{inside.process.pid}/task")
    before = len(list(threads.iterdir()))
    assert await inside.door.declare_forwards([(address, "late.sock")], "") == ()
    reader, writer = await asyncio.open_connection(*address.split(":"))
    assert await inside.door.declare_forwards([], "") == ()
    async with asyncio.timeout(PATIENCE_S):
        assert await reader.read() == b""
    async with asyncio.timeout(FORWARD_PATIENCE_S / 2):
        while len(list(threads.iterdir())) > before:  # noqa: ASYNC110 - a thread that ends sends no event
            await asyncio.sleep(0.02)
    late = await Echo("late").serve(inside.directory / "late.sock")
    assert await inside.door.declare_forwards([(address, "late.sock")], "") == ()
    assert await greeting(address) == b"late\n"
    writer.close()
    await late.close()


async def test_what_cannot_be_forwarded_is_told_and_the_rest_is(inside: Inside) -> None:
    free, taken = (f"127.0.1.{number}:{free_port()}" for number in (1, 2))
    occupant = await asyncio.start_server(lambda _, writer: writer.close(), *taken.split(":"))
    echo = await Echo("a").serve(inside.directory / "a.sock")
    await inside.boot()
    odd = [(free, "a.sock"), (taken, "a.sock"), ("127.0.1.3:1", "../a.sock"), ("127.0.1.3:0", "a.sock"), ("x:1", "a")]
    told = await inside.door.declare_forwards(odd, "")
    assert [line.split()[1].partition("=")[0] for line in told] == [taken, "127.0.1.3:1", "127.0.1.3:0", "x:1"]
    assert "in use" in told[0]
    assert await greeting(free) == b"a\n"
    occupant.close()
    await occupant.wait_closed()
    assert await inside.door.declare_forwards([(taken, "a.sock")], "") == (), "it is tried again"
    assert await greeting(taken) == b"a\n"
    many = [(f"127.0.2.{number}:{free_port()}", "a.sock") for number in range(1, 120)]
    told = await inside.door.declare_forwards(many, "")
    assert told
    assert all(line.endswith("too many") for line in told)
    await echo.close()


async def test_declarations_at_once_leave_one_of_them_whole(inside: Inside) -> None:
    echo = await Echo("a").serve(inside.directory / "a.sock")
    await inside.boot()
    ports = [free_port() for _ in range(20)]
    sets = [[(f"127.0.1.{number}:{port}", "a.sock") for port in ports] for number in range(1, 9)]
    told = await asyncio.gather(*(inside.door.declare_forwards(one, f"{number}\n") for number, one in enumerate(sets)))
    assert set(told) == {()}
    there = [[not await refuses(address) for address, _ in one] for one in sets]
    assert sorted(map(all, there)) == [False] * 7 + [True]
    assert sorted(map(any, there)) == [False] * 7 + [True]
    assert inside.hosts.read_text() == f"{[all(one) for one in there].index(True)}\n"
    await echo.close()


async def test_the_hosts_file_is_replaced_whole_and_never_through_a_link(inside: Inside) -> None:
    await inside.boot()
    aside = inside.directory / "aside"
    aside.write_text("not ours\n")
    inside.hosts.unlink()
    inside.hosts.symlink_to(aside)
    (inside.directory / "hosts.tenure").symlink_to(aside)
    assert await inside.door.declare_forwards([], "x" * 100_000) == ()
    assert (aside.read_text(), inside.hosts.read_text()) == ("not ours\n", "x" * 100_000)
    assert not inside.hosts.is_symlink()
    assert stat.S_IMODE(inside.hosts.stat().st_mode) == 0o644
    inode = inside.hosts.stat().st_ino
    await inside.door.declare_forwards([], "x" * 100_000)
    assert inside.hosts.stat().st_ino == inode, "one that is right already is left"
    inside.hosts.unlink()
    inside.hosts.mkdir()
    assert (await inside.door.declare_forwards([], "y"))[0].startswith("hosts ")


async def test_after_a_drain_forwards_are_as_they_were_until_they_are_declared_anew(inside: Inside) -> None:
    old, new = (f"127.0.1.{number}:{free_port()}" for number in (1, 2))
    echo = await Echo("a").serve(inside.directory / "a.sock")
    await inside.boot()
    await inside.door.declare_forwards([(old, "a.sock")], "")
    assert (await inside.door.drain()).done
    await inside.door.open()
    await inside.door.wait_open()
    assert await greeting(old) == b"a\n"
    await inside.door.declare_forwards([(new, "a.sock")], "")
    assert (await refuses(old), await greeting(new)) == (True, b"a\n")
    await echo.close()


# --- whole offices -----------------------------------------------------------------------------------------------------
@asynccontextmanager
async def office_with(
    settings: Settings, image: Image, name: str, source: Source, driver: GvisorDriver
) -> AsyncGenerator[Callable[[], Office]]:
    """Makes the office as a server would that starts: each call is another server's."""
    volumes = detect_driver(settings.pool_dir)
    spares = SpareVolumes(volumes, settings.volumes_dir, lambda _: None)
    environment = {"PATH": "/usr/bin:/bin"}
    parts = OfficeParts(settings, driver, volumes, spares, {}, environment, lambda: None, neighbours=(source,))
    record = OfficeRecord(name, 78, image.id, Limits(), (), "asleep", datetime.now(UTC))
    made: list[Office] = []

    def make() -> Office:
        made.append(Office(record, parts, Healthy()))
        return made[-1]

    try:
        yield make
    finally:
        await made[-1].rest(Tier.STOPPED)
        await made[-1].demolish()
        await spares.close()


async def hears(office: Office, name: str) -> str:
    """What a program inside hears from the neighbour; empty when there is none of this name."""
    host, _, port = name.partition(":")
    script = f"exec 3<>/dev/tcp/{host}/{port} && head -n 1 <&3"
    await office.ready()
    done = await office.door.run(("/bin/bash", "-c", script), env={}, user="agent", timeout_s=60)
    return done.stdout.decode().strip()


async def knows(office: Office) -> list[str]:
    """The neighbours in /etc/hosts, as programs inside read it."""
    done = await office.door.run(("/bin/cat", "/etc/hosts"), env={}, user="agent", timeout_s=60)
    return [line.split()[1] for line in done.stdout.decode().splitlines() if line.startswith("127.0.1.")]


async def test_neighbours_come_and_go_whether_the_office_is_awake_or_sleeps(
    settings: Settings, image: Image, unique_name: Callable[[str], str]
) -> None:
    source = Source(["sales.db:5432"])
    driver = GvisorDriver(settings.runsc_root)
    async with office_with(settings, image, unique_name("near"), source, driver) as make:
        office = make()
        await office.make_volume(image.path)
        assert await hears(office, "sales.db:5432") == "sales.db:5432"  # from the boot on
        assert await knows(office) == ["sales.db"]

        holding = await office.door.attach(
            ("/bin/bash", "-c", "exec 3<>/dev/tcp/sales.db/5432; cat <&3; echo over"), env={}, user="agent"
        )
        assert (await anext(aiter(holding)))[1] == b"sales.db:5432\n"
        source.names = ["crm.db:5432", "crm.db:3306"]
        await office.neighbours_changed()
        assert (await anext(aiter(holding)))[1] == b"over\n"  # awake: its connections are broken
        assert await knows(office) == ["crm.db"]
        assert [await hears(office, name) for name in ("crm.db:5432", "crm.db:3306")] == source.names
        assert await hears(office, "sales.db:5432") == ""

        for tier in (Tier.PAUSED, Tier.HIBERNATED, Tier.STOPPED):
            source.names = [f"{tier}.db:5432", "crm.db:3306"]
            await office.rest(tier)
            assert await office.tier() is tier
            await office.neighbours_changed()
            assert await office.tier() is tier, "nobody wakes an office for its neighbours"
            assert [await hears(office, name) for name in source.names] == source.names
            assert await hears(office, "crm.db:5432") == ""
            assert await knows(office) == sorted(name.partition(":")[0] for name in source.names)
            source.names = ["crm.db:5432"]
            await office.neighbours_changed()
            assert await knows(office) == ["crm.db"]

        await office.let_go()
        source.names = ["adopted.db:1", "crm.db:5432"]
        office = make()
        await office.adopt()
        assert await knows(office) == ["adopted.db", "crm.db"]
        assert [await hears(office, name) for name in source.names] == source.names
        await office.restart()
        assert [await hears(office, name) for name in source.names] == source.names
        source.names = []
        await office.neighbours_changed()
        assert await knows(office) == []
