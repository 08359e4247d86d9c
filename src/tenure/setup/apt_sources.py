"""Reads the machine's own apt sources, in both formats, and finds Debian's archive among them.

Pure: text in, values out. The mirror that Tenure uses for backports and for the base image is the one that the machine
already uses, so a site with a mirror of its own needs no configuration, and no host name is in this code.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

ALIASES = ("stable", "oldstable", "testing", "unstable", "sid")
"""Suite names that an archive entry may use instead of the release's codename."""
_DISABLED = ("no", "false", "0", "off", "disable")
_ONE_LINE = re.compile(r"^(deb|deb-src)\s+(?:\[(?P<options>[^\]]*)\]\s+)?(?P<rest>\S.*)$")
_OPTION = re.compile(r"([^\s=]+)=((?:\"[^\"]*\"|\S)+)")
_MAIN_FIELDS = ("types", "uris", "suites", "components", "enabled")


@dataclass(frozen=True)
class Source:
    """One entry of the apt sources. `options` keeps every other field by its deb822 name, such as `Signed-By`."""

    types: tuple[str, ...]
    uris: tuple[str, ...]
    suites: tuple[str, ...]
    components: tuple[str, ...]
    options: tuple[tuple[str, str], ...] = field(default=())

    def option(self, name: str) -> str | None:
        """The value of an option, its name compared without regard to case."""
        return next((value for key, value in self.options if key.lower() == name.lower()), None)

    def render(self) -> str:
        """The entry as a deb822 stanza."""
        lines = [
            f"Types: {' '.join(self.types)}",
            f"URIs: {' '.join(self.uris)}",
            f"Suites: {' '.join(self.suites)}",
        ]
        if self.components:
            lines.append(f"Components: {' '.join(self.components)}")
        lines += [f"{name}:{'' if value.startswith(chr(10)) else ' '}{value}" for name, value in self.options]
        return "\n".join(lines) + "\n"


def parse_deb822(text: str) -> Iterator[Source]:
    """Entries of a `.sources` file that are enabled; stanzas that are no apt source are skipped."""
    for stanza in re.split(r"\n[ \t]*\n", text.replace("\r\n", "\n")):
        fields: dict[str, tuple[str, str]] = {}
        last = ""
        for line in stanza.split("\n"):
            if line.startswith("#") or not line.strip():
                continue
            if line[0] in " \t" and last:
                name, value = fields[last]
                fields[last] = (name, f"{value}\n{line.rstrip()}")
            elif ":" in line:
                name, _, value = line.partition(":")
                last = name.strip().lower()
                fields[last] = (name.strip(), value.strip())
        words = {key: tuple(fields.get(key, ("", ""))[1].split()) for key in _MAIN_FIELDS}
        if not words["uris"] or not words["suites"] or (words["enabled"] and words["enabled"][0].lower() in _DISABLED):
            continue
        yield Source(
            types=words["types"] or ("deb",),
            uris=words["uris"],
            suites=words["suites"],
            components=words["components"],
            options=tuple(pair for key, pair in fields.items() if key not in _MAIN_FIELDS),
        )


def parse_one_line(text: str) -> Iterator[Source]:
    """Entries of a `.list` file; `[options]` get their deb822 names (`signed-by=` → `Signed-By:`)."""
    for raw in text.splitlines():
        match = _ONE_LINE.match(raw.split(" #")[0].strip())
        if not match:
            continue
        uri, _, tail = match["rest"].strip().partition(" ")
        if uri.startswith("cdrom:"):  # the label may hold blanks; a disc is no mirror anyway
            continue
        suite, *components = tail.split() or [""]
        if not suite:
            continue
        options = tuple(
            (_deb822_name(name), value.strip('"').replace(",", " "))
            for name, value in _OPTION.findall(match["options"] or "")
        )
        yield Source((match[1],), (uri,), (suite,), tuple(components), options)


def read_sources(apt_dir: Path) -> list[Source]:
    """Every enabled entry below `apt_dir` (`/etc/apt`), in apt's own order; unreadable files are skipped."""
    files = [apt_dir / "sources.list", *sorted((apt_dir / "sources.list.d").glob("*"))]
    found: list[Source] = []
    for file in files:
        parse = {".list": parse_one_line, ".sources": parse_deb822}.get(file.suffix)
        if parse and file.is_file():
            found += parse(file.read_text(errors="replace"))
    return found


def find_archive(sources: Iterable[Source], codename: str) -> Source | None:
    """The entry for Debian's own archive of the release `codename` (component main), or None.

    Other vendors name their suites after Debian's too (`… bookworm main`), so entries are ranked: signed with Debian's
    archive keyring, then a path that looks like Debian's archive, and a codename before an alias such as `stable`.
    """
    candidates = [
        source
        for source in sources
        if "deb" in source.types and "main" in source.components and _suite_of(source, codename)
    ]
    ranked = sorted(candidates, key=lambda source: _rank(source, codename))
    return ranked[0] if ranked else None


def find_suite(sources: Iterable[Source], suite: str, archive: Source | None = None) -> Source | None:
    """An enabled entry with exactly this suite and component main (of the same vendor as `archive`, when given)."""
    for source in sources:
        if "deb" in source.types and "main" in source.components and suite in source.suites:
            if archive and not _same_vendor(source, archive):
                continue
            return replace(source, suites=(suite,))
    return None


def backports_of(archive: Source, codename: str) -> Source:
    """The entry that makes the release's backports available from the same mirror, with the same keyring."""
    return replace(archive, types=("deb",), suites=(f"{codename}-backports",), components=("main",))


def image_sources(sources: Sequence[Source], archive: Source, codename: str) -> list[Source]:
    """What an image of `codename` gets: archive, updates and security, of Debian only, component main."""
    wanted = [
        replace(archive, types=("deb",), suites=(_suite_of(archive, codename) or codename,), components=("main",))
    ]
    for part in ("updates", "security"):
        for prefix in (codename, wanted[0].suites[0]):
            found = find_suite(sources, f"{prefix}-{part}", archive)
            if found:
                wanted.append(replace(found, types=("deb",), components=("main",)))
                break
    return wanted


def without_credentials(source: Source) -> Source:
    """The entry without `user:password@`: what goes into an image must hold no secret of the host."""
    return replace(source, uris=tuple(_strip_userinfo(uri) for uri in source.uris))


def _strip_userinfo(uri: str) -> str:
    parts = urlsplit(uri)
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))


def _suite_of(source: Source, codename: str) -> str | None:
    return next((suite for suite in (codename, *ALIASES) if suite in source.suites), None)


def _rank(source: Source, codename: str) -> tuple[int, int]:
    if _is_debian_keyring(source):
        vendor = 0
    elif any("debian" in uri.rstrip("/").split("/")[3:] for uri in source.uris) or "mirror+" in source.uris[0]:
        vendor = 1 if source.option("Signed-By") is None else 2
    else:
        vendor = 3
    return vendor, 0 if codename in source.suites else 1


def _is_debian_keyring(source: Source) -> bool:
    return "debian-archive" in (source.option("Signed-By") or "")


def _same_vendor(one: Source, other: Source) -> bool:
    """Whether nothing says otherwise: the same keyring, or Debian's, or none named."""
    keyring = one.option("Signed-By")
    return keyring is None or keyring == other.option("Signed-By") or _is_debian_keyring(one)


def _deb822_name(option: str) -> str:
    """`signed-by` → `Signed-By`; the few that differ between the formats are listed."""
    special = {"arch": "Architectures", "lang": "Languages", "target": "Targets", "pdiffs": "PDiffs"}
    return special.get(option.lower()) or "-".join(part.capitalize() for part in option.split("-"))


def files_named(sources: Iterable[Source]) -> list[Path]:
    """Files of the host that the entries refer to: keyrings, and lists of mirrors (`mirror+file:/…`)."""
    keyrings = (word for source in sources for word in (source.option("Signed-By") or "").split())
    lists = (uri.partition(":")[2] for source in sources for uri in source.uris if uri.startswith("mirror+file:"))
    return [Path("/" + word.lstrip("/")) for word in (*keyrings, *lists) if word.startswith("/")]
