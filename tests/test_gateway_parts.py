"""What the gateway decides, without a connection: keys, who may wait, which headers cross, whom a cookie lets in."""

from __future__ import annotations

import asyncio
import stat
import subprocess
from pathlib import Path

import asyncssh
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tenure.database import ControlDatabase
from tenure.errors import AlreadyExists, Conflict, Forbidden, InvalidArgument, NotFound, SetupError
from tenure.server.gateway import keys
from tenure.server.gateway.arrivals import Arrivals
from tenure.server.gateway.flow import WAITING_BYTES_MAX, Inflow, whole
from tenure.server.gateway.forward import office_address
from tenure.server.gateway.headers import framing, our_cookies, to_client, to_office, without_domain
from tenure.server.gateway.host_key import NAME, ensure_host_key, public_text
from tenure.server.gateway.keys import SshKeyStore, read_public_key
from tenure.server.gateway.passes import COOKIE_NAME, COOKIE_S, TICKET_S, TICKETS_MAX, Passes, Place
from tenure.server.gateway.session import taken_environment
from tenure.settings import Settings
from tenure.testing.fake_ssh_keys import FakeSshKeys


def public_line(kind: str = "ssh-ed25519", comment: str = "me@here", **options: int) -> str:
    key = asyncssh.generate_private_key(kind, comment=comment, **options)
    return key.export_public_key().decode()


# --- keys ----------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("kind", ["ssh-ed25519", "ecdsa-sha2-nistp256", "ssh-rsa"])
def test_a_public_key_is_known_by_the_fingerprint_that_openssh_prints(kind: str, tmp_path: Path) -> None:
    line = public_line(kind)
    (tmp_path / "key.pub").write_text(line)
    printed = subprocess.run(["ssh-keygen", "-lf", tmp_path / "key.pub"], capture_output=True, check=True, text=True)
    key = read_public_key(f"# a comment\n\n{line}\n")
    assert key.fingerprint == printed.stdout.split()[1]
    assert key.comment == "me@here"
    assert key.text == " ".join(line.split()[:2])


@pytest.mark.parametrize(
    "text",
    [
        "",
        "nonsense",
        "ssh-ed25519",
        "ssh-ed25519 AAAA",
        "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAI",
        'command="id" ' + public_line(),
        public_line() + public_line(),
        "ssh-rsa " + public_line().split()[1],
        public_line("ssh-rsa", key_size=1024),
        "ssh-ed25519 " + "A" * 20_000,
        "ssh-dss AAAAB3NzaC1kc3M=",
    ],
)
def test_what_is_not_one_good_public_key_is_refused(text: str) -> None:
    with pytest.raises(InvalidArgument):
        read_public_key(text)


def test_a_private_key_is_refused_and_not_repeated() -> None:
    private = asyncssh.generate_private_key("ssh-ed25519").export_private_key().decode()
    with pytest.raises(InvalidArgument, match="private key") as refused:
        read_public_key(private)
    assert private.splitlines()[2] not in str(refused.value.to_payload())


@pytest.fixture(params=["database", "fake"])
def store(request: pytest.FixtureRequest) -> SshKeyStore | FakeSshKeys:
    if request.param == "fake":
        return FakeSshKeys()
    return SshKeyStore(request.getfixturevalue("control_database"))


async def test_one_key_stands_for_one_principal_until_it_is_removed(store: SshKeyStore | FakeSshKeys) -> None:
    line = public_line()
    added = await store.add("owner", line)
    assert (added.comment, added.algorithm, added.last_used_at) == ("me@here", "ssh-ed25519", None)
    for principal in ("owner", "office:analyst"):
        with pytest.raises(AlreadyExists):
            await store.add(principal, line.replace("me@here", "other"))
    other = await store.add("owner", public_line(), comment="laptop")
    assert [(one.id, one.comment) for one in await store.list("owner")] == [(added.id, "me@here"), (other.id, "laptop")]
    assert await store.used(added.id)
    found = await store.find(added.fingerprint)
    assert found is not None
    assert found.last_used_at is not None
    with pytest.raises(NotFound):
        await store.remove("office:analyst", added.id)
    assert (await store.remove("owner", added.fingerprint)).id == added.id
    assert (await store.remove("owner", other.id)).id == other.id
    assert await store.find(added.fingerprint) is None
    assert not await store.used(added.id)
    with pytest.raises(NotFound):
        await store.remove("owner", added.id)


async def test_keys_are_bounded(control_database: ControlDatabase, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keys, "KEYS_MAX", 1)
    store = SshKeyStore(control_database)
    await store.add("owner", public_line())
    with pytest.raises(Conflict):
        await store.add("owner", public_line())


def test_the_host_key_is_made_once_and_a_broken_one_is_not_replaced(tmp_path: Path) -> None:
    settings = Settings(home=tmp_path)
    made = public_text(ensure_host_key(settings))
    assert made.startswith("ssh-ed25519 AAAA")
    assert public_text(ensure_host_key(settings)) == made
    path = settings.keys_dir / NAME
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [one.name for one in settings.keys_dir.iterdir()] == [NAME]
    path.write_text("broken")
    with pytest.raises(SetupError, match="cannot be read"):
        ensure_host_key(settings)


# --- strangers -----------------------------------------------------------------------------------------------------------
@given(st.lists(st.tuples(st.sampled_from("acl"), st.integers(0, 30), st.sampled_from("xyz")), max_size=200))
def test_strangers_are_bounded_and_whoever_authenticated_is_not_sent_away_for_one(
    steps: list[tuple[str, int, str]],
) -> None:
    arrivals = Arrivals[int](pending_max=8, per_source_max=4, connections_max=3)
    pending: dict[int, str] = {}
    known: set[int] = set()
    for what, who, source in steps:
        if what == "a" and who not in pending and who not in known:
            gone = arrivals.arrived(who, source)
            of_source = [one for one, at in pending.items() if at == source]
            if len(of_source) == 4:
                assert gone == of_source[0]
            elif len(pending) == 8:
                assert gone == next(iter(pending))
            else:
                assert gone is None
            if gone is not None:
                del pending[gone]
            pending[who] = source
        elif what == "c" and who in pending:
            del pending[who]
            assert arrivals.authenticated(who) == (len(known) < 3)
            if len(known) < 3:
                known.add(who)
        elif what == "l":
            pending.pop(who, None)
            known.discard(who)
            arrivals.left(who)
        assert sorted(arrivals.all()) == sorted([*pending, *known])


# --- back-pressure -------------------------------------------------------------------------------------------------------
class Channel:
    reading = True

    def pause_reading(self) -> None:
        self.reading = False

    def resume_reading(self) -> None:
        self.reading = True


async def test_a_channel_is_read_only_while_little_waits() -> None:
    channel = Channel()
    inflow = Inflow[bytes](channel)
    sent = 0
    while channel.reading:
        inflow.put(b"x" * 1000, 1000)
        sent += 1
    assert WAITING_BYTES_MAX / 1100 < sent < WAITING_BYTES_MAX / 1000 + 2
    for _ in range(sent):
        assert await inflow.get() == b"x" * 1000
    assert channel.reading
    waiting = asyncio.create_task(inflow.get())
    await asyncio.sleep(0)
    inflow.put(b"", 0)
    assert await waiting == b""
    for _ in range(10_000):  # what has no bytes counts, too
        inflow.put(b"", 0)
    assert not channel.reading


async def test_work_that_was_begun_is_ended_and_undone_when_nobody_wants_it_any_more() -> None:
    may_end, undone = asyncio.Event(), asyncio.Event()

    async def work() -> str:
        await may_end.wait()
        return "made"

    def undo(result: str) -> None:
        assert result == "made"
        undone.set()

    caller = asyncio.create_task(whole(work(), undo))
    await asyncio.sleep(0)
    caller.cancel()
    with pytest.raises(asyncio.CancelledError):
        await caller
    assert not undone.is_set()
    may_end.set()
    await asyncio.wait_for(undone.wait(), 10)


# --- what a client may say -----------------------------------------------------------------------------------------------
def test_the_environment_taken_is_language_colours_and_terminal() -> None:
    sent = {"LANG": "C", "LC_ALL": "C", "LD_PRELOAD": "/x", "PATH": "/x", "COLORTERM": "t", "LC_BAD": "a\nb", "X": "1"}
    assert taken_environment(sent, "xterm") == {"LANG": "C", "LC_ALL": "C", "COLORTERM": "t", "TERM": "xterm"}
    assert taken_environment({"LANG": "x" * 5000}, None) == {}


def test_forwards_lead_to_the_loopback_only() -> None:
    assert office_address("localhost", 80) == "127.0.0.1:80"
    assert office_address("::1", 80) == "127.0.0.1:80"
    assert office_address("DB", 5432) == "127.0.0.2:5432"
    assert office_address("127.1.2.3", 1) == "127.1.2.3:1"
    for host, port in (
        ("10.0.0.1", 80),
        ("127.0.0.1", 0),
        ("127.0.0.1", 65536),
        ("127.1", 80),
        ("0177.0.0.1", 80),
        ("127.0.0.1:22 ", 80),
        ("example.org", 80),
        ("", 80),
        ("0.0.0.0", 80),
    ):
        with pytest.raises(Forbidden):
            office_address(host, port)


# --- tickets and cookies -------------------------------------------------------------------------------------------------
class Clock:
    now = 1_800_000_000.0

    def __call__(self) -> float:
        return self.now


PLACE = Place("analyst", 8000)


def test_a_ticket_is_good_once_at_its_place_and_for_a_while() -> None:
    clock = Clock()
    passes = Passes("token", clock)
    ticket = passes.issue(PLACE, "owner")
    assert passes.redeem(ticket.secret, PLACE) is not None
    assert passes.redeem(ticket.secret, PLACE) is None
    for wrong in (Place("analyst", 8001), Place("other", 8000)):
        ticket = passes.issue(PLACE, "owner")
        assert passes.redeem(ticket.secret, wrong) is None
        assert passes.redeem(ticket.secret, PLACE) is None
    ticket = passes.issue(PLACE, "owner")
    clock.now += TICKET_S + 1
    assert passes.redeem(ticket.secret, PLACE) is None
    assert passes.redeem("", PLACE) is None


def test_tickets_are_bounded_and_the_oldest_goes() -> None:
    passes = Passes("token", Clock())
    tickets = [passes.issue(PLACE, "owner") for _ in range(TICKETS_MAX + 1)]
    assert passes.redeem(tickets[0].secret, PLACE) is None
    assert passes.redeem(tickets[1].secret, PLACE) is not None


def test_a_cookie_is_good_for_its_host_only_and_for_hours_also_with_the_next_server() -> None:
    clock = Clock()
    first, second = Passes("token", clock), Passes("token", clock)
    cookie = first.redeem(first.issue(PLACE, "owner").secret, PLACE)
    assert cookie is not None
    assert second.principal([cookie], PLACE) == "owner"
    assert second.principal(["wrong", "1.2.3", "", cookie], PLACE) == "owner"
    assert second.principal([cookie], Place("analyst", 8001)) is None
    assert second.principal([cookie], Place("other", 8000)) is None
    assert Passes("another token", clock).principal([cookie], PLACE) is None
    clock.now += COOKIE_S + 1
    assert second.principal([cookie], PLACE) is None


@given(st.data())
def test_a_cookie_that_was_changed_lets_nobody_in(data: st.DataObject) -> None:
    passes = Passes("token", Clock())
    cookie = passes.redeem(passes.issue(PLACE, "owner").secret, PLACE)
    assert cookie is not None
    at = data.draw(st.integers(0, len(cookie) - 1))
    put = data.draw(st.sampled_from("0123456789abcXYZ._-=\x00é"))
    changed = cookie[:at] + put + cookie[at + 1 :]
    # The last of the signature's letters carries bits that mean nothing; ours is compared as text, so it counts, too.
    assert (passes.principal([changed], PLACE) is None) == (changed != cookie)
    assert passes.principal([data.draw(st.text(max_size=100))], PLACE) is None


# --- headers -------------------------------------------------------------------------------------------------------------
def test_what_means_one_connection_and_what_a_client_claims_does_not_reach_the_office() -> None:
    sent = [
        (b"host", b"evil"),
        (b"connection", b"keep-alive, X-Secret, cookie"),
        (b"x-secret", b"1"),
        (b"keep-alive", b"1"),
        (b"te", b"trailers"),
        (b"transfer-encoding", b"chunked"),
        (b"content-length", b"5"),
        (b"upgrade", b"h2c"),
        (b"proxy-authorization", b"x"),
        (b"expect", b"100-continue"),
        (b"x-forwarded-for", b"1.2.3.4"),
        (b"x-forwarded-proto", b"https"),
        (b"forwarded", b"for=1.2.3.4"),
        (b"authorization", b"Basic of-the-office"),
        (b"accept", b"*/*"),
    ]
    assert to_office(sent, "8000--a.localhost:1") == [
        (b"host", b"8000--a.localhost:1"),
        (b"authorization", b"Basic of-the-office"),
        (b"accept", b"*/*"),
        (b"x-forwarded-host", b"8000--a.localhost:1"),
        (b"x-forwarded-proto", b"http"),
    ]
    assert framing(sent) == [(b"transfer-encoding", b"chunked")]
    assert framing([(b"content-length", b"5")]) == [(b"content-length", b"5")]
    assert framing([]) == []


def test_our_cookie_stays_with_us_and_the_offices_cookies_with_the_office() -> None:
    ours = COOKIE_NAME.encode()
    sent = [(b"cookie", b"a=1; " + ours + b"=secret; b=2"), (b"cookie", ours + b"=other")]
    assert (b"cookie", b"a=1; b=2") in to_office(sent, "h")
    assert not any(b"secret" in value or b"other" in value for _, value in to_office(sent, "h"))
    assert our_cookies(sent) == ["secret", "other"]


def test_an_office_sets_cookies_of_its_own_host_only() -> None:
    assert without_domain(b"a=1; Path=/; DOMAIN = localhost; Secure") == b"a=1; Path=/; Secure"
    assert without_domain(COOKIE_NAME.encode() + b" = x; Path=/") is None
    answered = to_client(
        304,
        [
            (b"content-length", b"10"),
            (b"connection", b"close, x-hop"),
            (b"x-hop", b"1"),
            (b"alt-svc", b'h2="evil:443"'),
            (b"set-cookie", b"a=1; domain=localhost"),
            (b"etag", b"e"),
        ],
    )
    assert answered == [(b"set-cookie", b"a=1"), (b"etag", b"e")]
