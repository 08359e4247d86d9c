"""Set-up can be run at any time: it finds the machine's own mirror, never leaves half a thing, and repeats for nothing."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from homes import own_pool, unmount_pool
from tenure.errors import SetupError
from tenure.settings import Settings
from tenure.setup import SilentProgress, current_image, ensure_pool_mounted, image, keys, officed, packages, pool, run
from tenure.setup.apt_sources import (
    Source,
    backports_of,
    files_named,
    find_archive,
    find_suite,
    image_sources,
    parse_deb822,
    parse_one_line,
    read_sources,
    without_credentials,
)
from tenure.setup.authorities import add_missing, certificates
from tenure.setup.commands import run as run_tool
from tenure.setup.system import filesystem_at, parse_os_release

GIB = 1024**3

# --- the machine's own mirror ------------------------------------------------------------------------------------------

BOOKWORM_CONTAINER = """\
Types: deb
# a comment in the middle of a stanza
URIs: http://mirror.example/debian
Suites: bookworm bookworm-updates
Components: main
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg

Types: deb
URIs: http://mirror.example/debian-security
Suites: bookworm-security
Components: main
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg
"""
BOOKWORM_INSTALLER = """\
#deb cdrom:[Debian GNU/Linux 12.5.0 _Bookworm_ - Official amd64 NETINST]/ bookworm contrib main non-free-firmware
deb cdrom:[Debian GNU/Linux 12.5.0 _Bookworm_ - Official amd64 DVD]/ bookworm main

deb http://mirror.example/debian/ bookworm main non-free-firmware
deb-src http://mirror.example/debian/ bookworm main non-free-firmware

deb http://security.example/debian-security bookworm-security main non-free-firmware
# bookworm-updates, to get updates before a point release is made;
deb http://mirror.example/debian/ bookworm-updates main non-free-firmware # trailing words
"""
BOOKWORM_OPTIONS = """
deb [arch=amd64,arm64 signed-by=/usr/share/keyrings/debian-archive-keyring.gpg check-valid-until=no] \
https://u:p@m.example/d/debian bookworm main
"""
TRIXIE_CLOUD = """\
Types: deb deb-src
URIs: mirror+file:///etc/apt/mirrors/debian.list
Suites: trixie trixie-updates trixie-backports
Components: main
Signed-By: /usr/share/keyrings/debian-archive-keyring.pgp

Types: deb deb-src
URIs: mirror+file:///etc/apt/mirrors/debian-security.list
Suites: trixie-security
Components: main
Signed-By: /usr/share/keyrings/debian-archive-keyring.pgp
"""
STABLE_ALIAS = "deb http://mirror.example/debian stable main\ndeb http://mirror.example/debian stable-updates main\n"
INLINE_KEY = """\
Types: deb
URIs: http://mirror.example/debian
Suites: bookworm
Components: main
Signed-By:
 -----BEGIN PGP PUBLIC KEY BLOCK-----
 .
 mDMEY865UxYJKwYBBAHaRw8BAQdAd7Z0srwuhlB6JKFkcf4HU4SSS/xcRfwEQWzr
 -----END PGP PUBLIC KEY BLOCK-----
"""
OTHER_VENDORS = """\
deb [signed-by=/usr/share/keyrings/hashicorp-archive-keyring.gpg] https://vendor.example bookworm main
deb [arch=amd64 signed-by=/etc/apt/keyrings/docker.gpg] https://container.example/linux/debian bookworm stable
deb https://vendor.example/repo bookworm main
"""


@pytest.mark.parametrize(
    ("sources", "uri", "keyring"),
    [
        (list(parse_deb822(BOOKWORM_CONTAINER)), "http://mirror.example/debian", "debian-archive-keyring.gpg"),
        (list(parse_one_line(BOOKWORM_INSTALLER)), "http://mirror.example/debian/", None),
        (list(parse_one_line(BOOKWORM_OPTIONS)), "https://u:p@m.example/d/debian", "debian-archive-keyring.gpg"),
        (list(parse_one_line(STABLE_ALIAS)), "http://mirror.example/debian", None),
        (list(parse_deb822(INLINE_KEY)), "http://mirror.example/debian", "END PGP PUBLIC KEY BLOCK"),
        (
            [*parse_one_line(OTHER_VENDORS), *parse_one_line(BOOKWORM_INSTALLER)],
            "http://mirror.example/debian/",
            None,
        ),
        (
            [*parse_one_line(OTHER_VENDORS), *parse_deb822(BOOKWORM_CONTAINER)],
            "http://mirror.example/debian",
            "debian-archive-keyring.gpg",
        ),
    ],
)
def test_backports_come_from_the_machines_own_mirror(sources: list[Source], uri: str, keyring: str | None) -> None:
    archive = find_archive(sources, "bookworm")
    assert archive is not None
    [entry] = parse_deb822(backports_of(archive, "bookworm").render())
    assert entry.uris == (uri,)
    assert entry.suites == ("bookworm-backports",)
    assert entry.types == ("deb",)
    assert entry.components == ("main",)
    signed_by = entry.option("signed-by")
    assert signed_by is None if keyring is None else keyring in str(signed_by)


def test_options_keep_their_meaning_between_the_formats() -> None:
    [source] = parse_one_line(BOOKWORM_OPTIONS)
    assert dict(source.options) == {
        "Architectures": "amd64 arm64",
        "Signed-By": "/usr/share/keyrings/debian-archive-keyring.gpg",
        "Check-Valid-Until": "no",
    }


def test_a_cloud_image_of_trixie_has_backports_already() -> None:
    sources = list(parse_deb822(TRIXIE_CLOUD))
    found = find_suite(sources, "trixie-backports", find_archive(sources, "trixie"))
    assert found is not None
    assert found.suites == ("trixie-backports",)
    assert Path("/etc/apt/mirrors/debian.list") in files_named(sources)


def test_only_other_vendors_is_no_archive_of_another_release() -> None:
    assert find_archive(parse_one_line(OTHER_VENDORS), "trixie") is None
    assert find_archive([], "bookworm") is None


def test_an_image_gets_archive_updates_and_security_of_debian_alone() -> None:
    for text, parse in ((BOOKWORM_CONTAINER, parse_deb822), (BOOKWORM_INSTALLER, parse_one_line)):
        sources = [*parse_one_line(OTHER_VENDORS), *parse(text)]
        archive = find_archive(sources, "bookworm")
        assert archive is not None
        chosen = image_sources(sources, archive, "bookworm")
        assert [source.suites for source in chosen] == [("bookworm",), ("bookworm-updates",), ("bookworm-security",)]
        assert not any("vendor.example" in uri for source in chosen for uri in source.uris)


def test_no_password_of_the_mirror_reaches_an_image() -> None:
    [source] = parse_one_line(BOOKWORM_OPTIONS)
    assert without_credentials(source).uris == ("https://m.example/d/debian",)


@pytest.mark.parametrize("word", ["no", "No", "false", "0"])
def test_a_disabled_entry_is_not_used(word: str) -> None:
    assert list(parse_deb822(f"Enabled: {word}\n{INLINE_KEY}")) == []


words = st.text("abcdefghijklmnopqrstuvwxyz0123456789-./", min_size=1, max_size=12)


@given(
    st.lists(
        st.builds(
            Source,
            types=st.sampled_from([("deb",), ("deb", "deb-src")]),
            uris=st.lists(words.map(lambda word: f"http://m/{word}"), min_size=1, max_size=2).map(tuple),
            suites=st.lists(words, min_size=1, max_size=3).map(tuple),
            components=st.lists(words, max_size=2).map(tuple),
            options=st.sampled_from(
                [
                    (),
                    (("Signed-By", "/k.gpg"),),
                    (("Signed-By", "\n -----BEGIN\n .\n AAA=\n -----END"), ("Trusted", "yes")),
                ]
            ),
        ),
        max_size=4,
    )
)
def test_what_is_rendered_is_read_back(sources: list[Source]) -> None:
    assert list(parse_deb822("\n".join(source.render() for source in sources))) == sources


@given(st.text())
def test_no_text_breaks_the_parsers(text: str) -> None:
    list(parse_deb822(text))
    list(parse_one_line(text))


@pytest.fixture
def apt_dir(tmp_path: Path) -> Path:
    (tmp_path / "sources.list.d").mkdir()
    (tmp_path / "sources.list.d" / "debian.sources").write_text(BOOKWORM_CONTAINER)
    return tmp_path


def test_backports_are_added_once(apt_dir: Path) -> None:
    written = packages.ensure_backports("bookworm", SilentProgress(), apt_dir)
    assert written == apt_dir / "sources.list.d" / "tenure-backports.sources"
    assert find_suite(read_sources(apt_dir), "bookworm-backports") is not None
    assert packages.ensure_backports("bookworm", SilentProgress(), apt_dir) is None


def test_backports_that_are_there_are_used(apt_dir: Path) -> None:
    (apt_dir / "sources.list").write_text("deb http://other.example/debian bookworm-backports main contrib\n")
    assert packages.ensure_backports("bookworm", SilentProgress(), apt_dir) is None
    assert len(list((apt_dir / "sources.list.d").iterdir())) == 1


def test_a_machine_without_debian_sources_gets_a_hint(tmp_path: Path) -> None:
    with pytest.raises(SetupError, match="no entry for Debian bookworm") as raised:
        packages.ensure_backports("bookworm", SilentProgress(), tmp_path)
    assert "debian.sources" in raised.value.hint


# --- facts about the machine -------------------------------------------------------------------------------------------


def test_releases_are_known_by_their_codename() -> None:
    assert parse_os_release('ID=debian\nVERSION_ID="13"\nVERSION_CODENAME=trixie\n').version == 13
    assert parse_os_release('ID=debian\nPRETTY_NAME="Debian forky/sid"\nVERSION_CODENAME=forky\n').version is None


@pytest.mark.parametrize(
    "text", ["", "ID=ubuntu\nVERSION_CODENAME=noble\n", "ID=debian\nVERSION_ID=11\nVERSION_CODENAME=bullseye\n"]
)
def test_other_systems_are_refused_with_a_hint(text: str) -> None:
    with pytest.raises(SetupError, match="Debian 12 or newer") as raised:
        parse_os_release(text)
    assert raised.value.hint


def test_the_filesystem_of_a_path_is_the_nearest_mount() -> None:
    table = (
        "20 1 254:0 / / rw - ext4 /dev/vda rw\n"
        "31 20 0:30 / /srv/a\\040b/pool rw,nosuid - btrfs /dev/loop0 rw\n"
        "32 20 0:31 / /srv/a\\040b/poolside rw - tmpfs tmpfs rw\n"
    )
    assert filesystem_at(Path("/srv/a b/pool/images"), table) == ("btrfs", Path("/srv/a b/pool"))
    assert filesystem_at(Path("/srv/a b/pools"), table)[0] == "ext4"


@pytest.mark.parametrize(
    ("wanted", "free", "size"),
    [(40 * GIB, 100 * GIB, 40 * GIB), (40 * GIB, 22 * GIB, 20 * GIB), (GIB, 4 * GIB, GIB)],
)
def test_a_pool_leaves_room_to_the_machine(wanted: int, free: int, size: int) -> None:
    assert pool.pool_size(wanted, free) == size


@pytest.mark.parametrize(("wanted", "free"), [(40 * GIB, 5 * GIB), (GIB, 2 * GIB), (GIB, 0)])
def test_a_disk_too_small_for_a_pool_is_an_error(wanted: int, free: int) -> None:
    with pytest.raises(SetupError, match="GB free") as raised:
        pool.pool_size(wanted, free)
    assert "TENURE_HOME" in raised.value.hint


@given(
    st.lists(st.sampled_from(["Get:1 x", "Unpacking a", "Setting up a", "1 upgraded, 3 newly installed, 0", "other"]))
)
def test_progress_never_goes_back(lines: list[str]) -> None:
    meter = packages.AptMeter()
    seen = [meter.feed(line) for line in lines]
    assert seen == sorted(seen)
    assert all(0 <= fraction <= 1.0001 for fraction in seen)


# --- tools that set-up runs -------------------------------------------------------------------------------------------


def test_a_failing_tools_last_words_are_in_the_error() -> None:
    with pytest.raises(SetupError, match="Trying failed: sh ended with code 3") as raised:
        run_tool(["sh", "-c", "echo it is broken >&2; exit 3"], doing="Trying", timeout_s=20)
    assert "it is broken" in raised.value.message


def test_a_missing_tool_is_named() -> None:
    with pytest.raises(SetupError, match="no-such-tool"):
        run_tool(["no-such-tool"], doing="Trying", timeout_s=20)


def test_a_tool_that_hangs_is_ended_with_its_children(tmp_path: Path) -> None:
    pid_file = tmp_path / "pid"
    with pytest.raises(SetupError, match="not done after"):
        run_tool(["sh", "-c", f"sleep 1000 & echo $! >{pid_file}; wait"], doing="Waiting", timeout_s=1)
    pid = int(pid_file.read_text())
    while alive(pid):  # the kernel may take a moment; a child that was not ended runs into the test's timeout
        time.sleep(0.01)


def alive(pid: int) -> bool:
    try:
        return Path("/proc", str(pid), "stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_a_tool_that_asks_a_question_gets_no_answer() -> None:
    script = 'read answer || echo "no answer"; [ -t 0 ] || echo "no terminal"; (: </dev/tty) 2>/dev/null || echo "none at all"'
    output = run_tool(["sh", "-c", script], doing="Asking", timeout_s=20)
    assert output.splitlines() == ["no answer", "no terminal", "none at all"]


# --- trust -------------------------------------------------------------------------------------------------------------


def test_an_office_trusts_what_only_the_host_trusts(tmp_path: Path) -> None:
    def pem(body: str) -> str:
        return f"-----BEGIN CERTIFICATE-----\n{body}\n-----END CERTIFICATE-----\n"

    packaged = tmp_path / "usr/share/ca-certificates/mozilla"
    packaged.mkdir(parents=True)
    (packaged / "known.crt").write_text(pem("KNOWN"))
    bundle = f"# Site authority\n{pem('SITE')}{pem('KNOWN')}{pem('SITE')}"
    assert certificates(bundle) == [pem("SITE"), pem("KNOWN")]
    assert add_missing(tmp_path, bundle) == 1
    [added] = (tmp_path / "usr/local/share/ca-certificates").iterdir()
    assert added.read_text() == pem("SITE")
    assert add_missing(tmp_path, bundle) == 1, "the same again"
    assert len(list(added.parent.iterdir())) == 1


# --- the pool ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def small(test_home: Path) -> Iterator[Settings]:
    """Settings with a home of its own and a sparse pool of 3 GB; `test_home` brings the packages."""
    with own_pool(3 * GIB) as settings:
        yield settings


def test_the_pool_comes_back_after_a_reboot(small: Settings) -> None:
    pool.ensure_pool(small)
    assert pool.is_ready(small)
    (small.volumes_dir / "kept").write_text("yes")
    unmount_pool(small.home)
    assert not pool.is_mounted(small)
    ensure_pool_mounted(small)
    assert (small.volumes_dir / "kept").read_text() == "yes"
    assert pool.quota_on(small)
    ensure_pool_mounted(small)
    assert sum(str(small.pool_dir) in line for line in Path("/proc/self/mounts").read_text().splitlines()) == 1


def test_the_pool_takes_no_disk_before_it_is_filled(small: Settings) -> None:
    pool.ensure_pool(small)
    assert small.pool_file.stat().st_blocks * 512 < small.pool_bytes // 4
    assert stat.S_IMODE(small.pool_file.stat().st_mode) == 0o600


def test_a_program_in_the_pool_gains_nobody_root(small: Settings) -> None:
    pool.ensure_pool(small)
    options = next(
        line.split()[3] for line in Path("/proc/self/mounts").read_text().splitlines() if str(small.home) in line
    )
    assert {"nosuid", "nodev"} <= set(options.split(","))


def test_a_missing_pool_is_never_replaced_by_an_empty_directory(small: Settings) -> None:
    with pytest.raises(SetupError, match="no pool"):
        ensure_pool_mounted(small)
    small.pool_file.write_bytes(b"this is no filesystem" * 1000)
    with pytest.raises(SetupError, match="Mounting the pool failed"):
        ensure_pool_mounted(small)
    with pytest.raises(SetupError, match="Mounting the pool failed"):
        pool.ensure_pool(small)
    assert not pool.is_plain_directory(small)
    assert small.pool_file.read_bytes().startswith(b"this is no filesystem"), "evidence is not thrown away"


def test_without_btrfs_offices_are_plain_directories(small: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []

    class Told(SilentProgress):
        def notice(self, text: str) -> None:
            said.append(text)

    monkeypatch.setattr(pool, "kernel_has_btrfs", lambda: False)
    pool.ensure_pool(small, Told())
    assert any("no btrfs" in text for text in said)
    assert pool.is_plain_directory(small)
    assert pool.is_ready(small)
    ensure_pool_mounted(small)
    assert small.volumes_dir.is_dir()


# --- the whole ---------------------------------------------------------------------------------------------------------


def shape(root: Path) -> dict[str, tuple[int, int, int]]:
    """What is under `root`, down to images but not into them: inode, size and time of each."""
    found: dict[str, tuple[int, int, int]] = {}
    for directory, names, files in os.walk(root):
        path = Path(directory)
        if path.parent.name == "images" or path.name in ("homes", "volumes"):
            names.clear()
        for name in (*names, *files):
            facts = (path / name).lstat()
            if name not in ("homes", "volumes", "pool.btrfs", "setup.lock"):
                found[str(path / name)] = (facts.st_ino, facts.st_size, facts.st_mtime_ns)
    return found


def test_a_second_setup_changes_nothing(test_home: Path) -> None:
    before = shape(test_home)
    assert run(Settings(home=test_home), progress=SilentProgress()) == []
    assert shape(test_home) == before


def test_a_killed_setup_leaves_no_half_image(
    small: Settings, image_here: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(BaseException):
        pass

    def die(*_: object) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(image.template, "build_template", die)
        with pytest.raises(Killed):
            run(small, progress=SilentProgress())
    with pytest.raises(SetupError, match="no base image"):
        current_image(small)
    assert list(small.images_dir.glob("debian-*")) == []
    assert "image" in run(small, progress=SilentProgress())
    assert [path.name for path in small.images_dir.glob(".*")] == []
    built = current_image(small)
    assert (built.path / "postgres" / "PG_VERSION").exists()
    assert run(small, progress=SilentProgress()) == []


@pytest.fixture
def image_here(test_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets a small pool take the root that was built for the shared home, instead of building it again."""
    monkeypatch.setattr(image, "_same_rootfs", lambda *_: current_image(Settings(home=test_home)).rootfs)


def test_the_image_is_what_offices_need(image: image.Image, settings: Settings) -> None:
    root = image.rootfs
    shadow = {line.split(":")[0]: line.split(":") for line in (root / "etc/shadow").read_text().splitlines()}
    assert shadow["agent"][1] == "*", "neither locked (sshd would refuse) nor open"
    assert "agent:x:1000:1000:" in (root / "etc/passwd").read_text()
    assert (root / "home/agent").stat().st_uid == 1000
    assert not list((root / "etc/ssh").glob("ssh_host_*")), "each office makes its own"
    assert (root / "etc/machine-id").read_text() == ""
    assert list((root / "var/lib/apt/lists").glob("*Packages*")) == []
    assert list((root / "var/cache/apt/archives").glob("*.deb")) == []
    for program in ("python3", "pip", "git", "curl", "ssh", "tini", "psql", "gcc", "sudo", "rsync", "jq"):
        assert any(
            (root / place / program).is_symlink() or (root / place / program).exists() for place in ("usr/bin", "bin")
        )
    assert (root / "usr/sbin/sshd").exists()
    assert json.loads((image.path / "image.json").read_text())["id"] == image.id
    assert "@" not in (root / "etc/apt/sources.list.d/debian.sources").read_text()


def test_the_image_cannot_be_written(image: image.Image) -> None:
    if pool.filesystem_at(image.path)[0] != "btrfs":
        pytest.skip("only btrfs volumes can be read-only")
    with pytest.raises(OSError, match="Read-only"):
        (image.rootfs / "x").write_text("x")


def test_officed_is_built_again_when_its_source_changes(
    settings: Settings, small: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / "officed.c"
    monkeypatch.setattr(officed, "SOURCES", tmp_path)
    monkeypatch.setattr(officed, "current_image", lambda _: current_image(settings))
    for answer in (3, 4):
        source.write_text(f"int main(void) {{ return {answer}; }}\n")
        assert not officed.is_current(small)
        officed.build(small)
        assert officed.is_current(small)
        assert subprocess.run([small.officed_dir / "officed"], check=False, timeout=20).returncode == answer
    source.write_text("int main(void) { return nonsense; }\n")
    with pytest.raises(SetupError, match="nonsense"):
        officed.build(small)
    program = small.officed_dir / "officed"
    assert subprocess.run([program], check=False, timeout=20).returncode == 4, "a failed build leaves the old one"


def test_the_owners_key_is_private_and_kept(small: Settings) -> None:
    keys.make(small)
    key = keys.private_key(small)
    text = key.read_text()
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    key.with_suffix(".pub").unlink()
    assert not keys.exist(small)
    keys.make(small)
    assert key.read_text() == text
    assert key.with_suffix(".pub").read_text().startswith("ssh-ed25519 ")
