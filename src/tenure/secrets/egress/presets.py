"""Presets: `pip`, `npm` and `apt`, read from what this host's own clients are set up to use.

So a site's mirror works in offices as it does on the host, and no registry's name is in this code. Where a client has no
setting of its own, its built-in default is asked of the client itself.
"""

from __future__ import annotations

import ast
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

from tenure.errors import InvalidArgument
from tenure.secrets.egress.rules import Preset, Rule, normalise_host
from tenure.setup import apt_sources

CLIENT_TIMEOUT_S = 20.0
KEPT_S = 600.0
"""How long an answer of the clients is taken for granted."""
APT_DIR = Path("/etc/apt")
URL_SCHEMES = {"http": 80, "https": 443}
_PIP_DEFAULT = """
from pip._internal.models.index import PyPI
print(PyPI.simple_url, "https://" + PyPI.file_storage_domain)
"""
_PIP_OPTIONS = ("index-url", "extra-index-url", "find-links")
_PIP_SECTIONS = (":env:", "install", "global")
"""Which of them wins, first."""


@dataclass(frozen=True)
class HostClients:
    """What the host's clients use: presets, and the settings that an office's clients need to use the same. URLs hold no
    credentials."""

    presets: Mapping[str, Preset]
    pip_index_url: str | None = None
    """Only when the host has one set; pip's default needs no setting."""
    pip_extra_index_urls: tuple[str, ...] = ()
    npm_registry: str | None = None


_kept: tuple[float, HostClients] | None = None
_reading = threading.Lock()


def read_host_clients(*, fresh: bool = False) -> HostClients:
    """Asks pip, npm and apt, at most every ten minutes unless `fresh`. Blocks for up to a second when it asks. Does not
    raise: a client that is missing or does not answer has an empty preset with a note."""
    global _kept
    with _reading:
        if fresh or _kept is None or time.monotonic() - _kept[0] > KEPT_S:
            _kept = (time.monotonic(), _read())
        return _kept[1]


def last_host_clients() -> HostClients:
    """The last answer, however old; asks only when there is none yet. For callers who must not wait."""
    return _kept[1] if _kept is not None else read_host_clients()


def read_presets() -> Mapping[str, Preset]:
    """The presets by name; see `read_host_clients`."""
    return read_host_clients().presets


def _read() -> HostClients:
    with ThreadPoolExecutor(3) as pool:
        pip, npm, apt = pool.submit(_read_pip), pool.submit(_read_npm), pool.submit(_read_apt)
    (pip_preset, index_url, extra), (npm_preset, registry) = pip.result(), npm.result()
    presets = {preset.name: preset for preset in (pip_preset, npm_preset, apt.result())}
    return HostClients(presets, index_url, extra, registry)


# --- pip --------------------------------------------------------------------------------------------------------------
def _read_pip() -> tuple[Preset, str | None, tuple[str, ...]]:
    python = _python_with_pip()
    if python is None:
        return Preset("pip", notes=("no pip was found on this host",)), None, ()
    settings = parse_pip_config(_output([python, "-m", "pip", "config", "list"]) or "")
    defaults = (_output([python, "-c", _PIP_DEFAULT]) or "").split()
    return pip_preset(settings, defaults)


def parse_pip_config(text: str) -> dict[str, tuple[str, ...]]:
    """The values of pip's index options by their full names (`global.index-url`), from `pip config list`."""
    found: dict[str, tuple[str, ...]] = {}
    for line in text.splitlines():
        name, equals, value = line.partition("=")
        section, _, option = name.rpartition(".")
        if equals and option in _PIP_OPTIONS and section in _PIP_SECTIONS:
            try:
                found[name] = tuple(str(ast.literal_eval(value)).split())
            except (ValueError, SyntaxError):
                continue
    return found


def pip_preset(
    settings: Mapping[str, tuple[str, ...]], defaults: list[str]
) -> tuple[Preset, str | None, tuple[str, ...]]:
    """The preset, and the index URLs to set in an office. `defaults` are pip's built-in index and where its files lie."""

    def first(option: str) -> tuple[str, ...]:
        return next(
            (settings[f"{section}.{option}"] for section in _PIP_SECTIONS if f"{section}.{option}" in settings), ()
        )

    notes: list[str] = []
    index = first("index-url")[:1]
    urls = [*(index or defaults), *first("extra-index-url"), *first("find-links")]
    if index and defaults and _host(index[0]) == _host(defaults[0]):
        urls += defaults  # the default written out: its files lie elsewhere all the same
    rules = _rules("pip", urls, notes)
    extra = tuple(clean for url in first("extra-index-url") if (clean := _clean(url)))
    return Preset("pip", rules, tuple(notes)), _clean(index[0]) if index else None, extra


def _python_with_pip() -> str | None:
    for python in (sys.executable, shutil.which("python3")):
        if python and _output([python, "-m", "pip", "--version"]) is not None:
            return python
    return None


# --- npm --------------------------------------------------------------------------------------------------------------
def _read_npm() -> tuple[Preset, str | None]:
    npm = shutil.which("npm")
    if npm is None:
        return Preset("npm", notes=("npm is not installed on this host, so its registry is not known",)), None
    return npm_preset(_output([npm, "config", "list", "--json"]) or "")


def npm_preset(text: str) -> tuple[Preset, str | None]:
    """The preset and the registry, from `npm config list --json`; registries of scopes (`@x:registry`) included."""
    try:
        config = json.loads(text)
    except ValueError:
        config = None
    if not isinstance(config, dict):
        return Preset("npm", notes=("npm did not tell its configuration",)), None
    settings: dict[str, object] = {str(key): value for key, value in config.items()}  # pyright: ignore[reportUnknownVariableType, reportUnknownArgumentType]
    names = ["registry", *sorted(name for name in settings if name.endswith(":registry"))]
    urls = [str(settings[name]) for name in names if settings.get(name)]
    notes: list[str] = []
    rules = _rules("npm", urls, notes)
    registry = settings.get("registry")
    return Preset("npm", rules, tuple(notes)), _clean(str(registry)) if registry else None


# --- apt --------------------------------------------------------------------------------------------------------------
def _read_apt() -> Preset:
    return apt_preset(APT_DIR)


def apt_preset(apt_dir: Path) -> Preset:
    """The hosts of every enabled source below `apt_dir`, lists of mirrors (`mirror+file:`) included."""
    urls: list[str] = []
    for source in apt_sources.read_sources(apt_dir):
        for uri in source.uris:
            scheme, _, rest = uri.partition(":")
            if scheme == "mirror+file":
                urls += _mirror_list(Path("/" + rest.lstrip("/")))
            else:
                urls.append(uri.removeprefix("mirror+"))
    if not urls:
        return Preset("apt", notes=(f"there are no apt sources below {apt_dir}",))
    notes: list[str] = []
    return Preset("apt", _rules("apt", urls, notes), tuple(notes))


def _mirror_list(path: Path) -> list[str]:
    try:
        lines = path.read_text(errors="replace").splitlines()
    except OSError:
        return []
    return [words[0] for line in lines if (words := line.split()) and not words[0].startswith("#")]


# --- common -----------------------------------------------------------------------------------------------------------
def _rules(preset: str, urls: Iterable[str], notes: list[str]) -> tuple[Rule, ...]:
    rules: list[Rule] = []
    for url in dict.fromkeys(urls):
        parts = urlsplit(url)
        if parts.scheme not in URL_SCHEMES:
            notes.append(f"{_shown(url)} is not on the network and is not taken over")
            continue
        try:
            port = parts.port or URL_SCHEMES[parts.scheme]
            rule = Rule(normalise_host(parts.hostname or ""), frozenset({port}), preset=preset)
        except (InvalidArgument, ValueError):
            notes.append(f"{_shown(url)} has no usable host name")
            continue
        if parts.username is not None:
            notes.append(f"{_shown(url)} needs a password, which offices are not given")
        rules.append(rule)
    return tuple(dict.fromkeys(rules))


def _clean(url: str) -> str | None:
    """Without credentials; None for what is not on the network."""
    parts = urlsplit(url)
    if parts.scheme not in URL_SCHEMES:
        return None
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))


def _shown(url: str) -> str:
    """For a note: no credentials, one line."""
    parts = urlsplit(url)
    return "".join(urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2])).split())[:200]


def _host(url: str) -> str | None:
    return urlsplit(url).hostname


def _output(argv: list[str]) -> str | None:
    """What a client of the host prints, run where no project's files change its mind; None when it fails."""
    try:
        done = subprocess.run(
            argv,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=CLIENT_TIMEOUT_S,
            cwd="/",
            env=dict(os.environ) | {"NO_COLOR": "1"},
            check=False,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.decode("utf-8", "replace") if done.returncode == 0 else None
