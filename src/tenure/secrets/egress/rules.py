"""What an office may reach: entries as people write them, rules as the proxy reads them. Pure.

    pip                 a preset: what this host's own pip is set up to use (`presets.py`)
    example.org         that host, ports 80 and 443
    *.example.org       every host below it, not itself
    example.org:8443    that port only

Everything else is denied.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from tenure.errors import InvalidArgument

WEB_PORTS = frozenset({80, 443})
HOST_CHARS_MAX = 253
ENTRIES_MAX = 200
_LABEL = re.compile(r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?\Z")
_NUMERIC = re.compile(r"(?:\d+|0x[0-9a-f]*)\Z")
_PORT = re.compile(r"[0-9]{1,5}\Z")
_HINT = "Entries look like pip, example.org, *.example.org or example.org:8443."


@dataclass(frozen=True)
class Rule:
    """Allows `host` (and with `subdomains` only what is below it) on `ports`."""

    host: str
    ports: frozenset[int] = WEB_PORTS
    subdomains: bool = False
    preset: str = ""
    """The preset that it is part of; empty for an entry of the owner's."""

    @property
    def from_host(self) -> bool:
        """Whether the host's own configuration names it: then it may be a mirror on a private network."""
        return self.preset != ""

    def allows(self, host: str, port: int) -> bool:
        """`host` must be normalised."""
        if port not in self.ports:
            return False
        return host.endswith("." + self.host) if self.subdomains else host == self.host

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        name = f"*.{host}" if self.subdomains else host
        return name if self.ports == WEB_PORTS else f"{name}:{','.join(str(port) for port in sorted(self.ports))}"


@dataclass(frozen=True)
class Preset:
    """A name for what a client of this host is set up to use. `notes` say what could not be taken over and why."""

    name: str
    rules: tuple[Rule, ...] = ()
    notes: tuple[str, ...] = field(default=())


def normalise_host(text: str) -> str:
    """`text` as names are compared: lower case, no final dot, internationalised labels in ASCII, addresses in their
    shortest form without brackets. Raises `InvalidArgument` for what is no host name, numbers in disguise
    (`127.1`, `0x7f.1`) included."""
    host = text.strip().lower()
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
        if ":" not in host:
            raise InvalidArgument(f"{text[:100]!r} is not a host name.", hint=_HINT)
    try:
        return ipaddress.ip_address(host).compressed
    except ValueError:
        pass
    host = host.removesuffix(".")
    if not host.isascii():
        try:
            host = host.encode("idna").decode("ascii").lower()
        except UnicodeError:
            raise InvalidArgument(f"{text[:100]!r} is not a host name.", hint=_HINT) from None
    labels = host.split(".")
    if len(host) > HOST_CHARS_MAX or not all(_LABEL.match(label) for label in labels) or _NUMERIC.match(labels[-1]):
        raise InvalidArgument(f"{text[:100]!r} is not a host name.", hint=_HINT)
    return host


def parse_authority(text: str, default_port: int | None = None) -> tuple[str, int]:
    """Normalised host and port of `host:port`, `[v6]:port`, or with a default `host`. Raises `InvalidArgument`: for user
    names in it too, which only serve to mislead."""
    if text.startswith("["):
        host, bracket, rest = text.partition("]")
        host, found = host + bracket, rest.startswith(":")
        port = rest[1:]
        if rest and not found:
            raise InvalidArgument(f"{text[:100]!r} is not host:port.", hint=_HINT)
    else:
        host, found, port = text.rpartition(":") if ":" in text else (text, "", "")
        if ":" in host:  # an IPv6 address needs brackets where a port may follow
            raise InvalidArgument(f"{text[:100]!r} is not host:port.", hint="Write IPv6 addresses in brackets.")
    if not found:
        if default_port is None:
            raise InvalidArgument(f"{text[:100]!r} has no port.", hint=_HINT)
        return normalise_host(host), default_port
    if not _PORT.match(port) or not 1 <= int(port) <= 65535:
        raise InvalidArgument(f"{port[:20]!r} is not a port.", hint=_HINT)
    return normalise_host(host), int(port)


def parse_entry(text: str) -> Rule:
    """The rule that an entry other than a preset stands for. Raises `InvalidArgument`, saying what to write instead."""
    entry = text.strip()
    if "://" in entry or "/" in entry:
        raise InvalidArgument(f"{text[:100]!r} is an address of a page; egress is by host.", hint=_HINT)
    subdomains = entry.startswith("*.")
    rest = entry[2:] if subdomains else entry
    if "*" in rest:
        raise InvalidArgument(f"{text[:100]!r}: '*' can only stand before the first dot.", hint=_HINT)
    host, port = parse_authority(rest, default_port=0)
    address = _address(host)
    if subdomains and (address is not None or "." not in host):
        raise InvalidArgument(f"{text[:100]!r} covers a whole top level.", hint=_HINT)
    if address is not None and not address.is_global:
        raise InvalidArgument(
            f"{text[:100]!r} is an address of this machine or of a private network, which offices never reach.",
            hint="Put a service that offices shall use behind a public name, or on this host's own mirror settings.",
        )
    return Rule(host, WEB_PORTS if port == 0 else frozenset({port}), subdomains)


def check_entries(entries: Sequence[str], preset_names: Iterable[str]) -> tuple[str, ...]:
    """The entries, trimmed, each once. Raises `InvalidArgument`."""
    if len(entries) > ENTRIES_MAX:
        raise InvalidArgument(f"An office can have at most {ENTRIES_MAX} egress entries.")
    known = set(preset_names)
    for entry in entries:
        if entry.strip() not in known:
            rule = parse_entry(entry)
            if "." not in rule.host and ":" not in rule.host:
                raise InvalidArgument(
                    f"{entry!r} is neither a preset nor a domain.", hint=f"Presets: {', '.join(sorted(known))}. {_HINT}"
                )
    return tuple(dict.fromkeys(entry.strip() for entry in entries))


def expand(entries: Sequence[str], presets: Mapping[str, Preset]) -> tuple[Rule, ...]:
    """The rules of entries and of the presets among them. Raises `InvalidArgument`."""
    rules: list[Rule] = []
    for entry in check_entries(entries, presets):
        rules += presets[entry].rules if entry in presets else [parse_entry(entry)]
    return tuple(rules)


def decide(host: str, port: int, rules: Iterable[Rule]) -> Rule | None:
    """The first rule that allows a normalised host and port; None when nothing does."""
    return next((rule for rule in rules if rule.allows(host, port)), None)


def _address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None
