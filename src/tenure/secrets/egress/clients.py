"""What clients inside an office need to use its only way out: proxy variables, mirrors, certificate authorities.

What never changes is in the image (`tenure.setup.recipe`); here is what follows the host, written before each boot.
"""

from __future__ import annotations

import functools
import hashlib
from pathlib import Path

from tenure.offices.rootfs import read_file, remove_file, write_file
from tenure.secrets.egress.presets import HostClients, last_host_clients
from tenure.setup import authorities
from tenure.setup.recipe import CA_BUNDLE, EGRESS_PROXY, NO_PROXY

NEIGHBOURS = ".db,.api,.tcp"
"""How the names of an office's neighbours end (`tenure.offices.neighbours`): what is reached without the proxy."""
PIP_FILE = "/etc/xdg/pip/pip.conf"
"""pip reads it before `/etc/pip.conf`, so what an agent sets there, or for itself, wins."""
NPM_FILES = ("/etc/npmrc", "/usr/etc/npmrc")
"""Where Debian's npm, and one installed below `/usr`, look for settings of the machine."""
MARK = "written by Tenure from the host's configuration at each start"
BUNDLE_BYTES_MAX = 8 * 1024 * 1024
_CA_VARIABLES = (
    "SSL_CERT_FILE",
    "REQUESTS_CA_BUNDLE",
    "CURL_CA_BUNDLE",
    "PIP_CERT",
    "GIT_SSL_CAINFO",
    "NODE_EXTRA_CA_CERTS",
)


def office_environment() -> dict[str, str]:
    """Variables that make the clients in an office use its egress proxy and trust what the host trusts."""
    proxies = dict.fromkeys(("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"), EGRESS_PROXY)
    direct = f"{NO_PROXY},{NEIGHBOURS}"
    return proxies | {"no_proxy": direct, "NO_PROXY": direct} | dict.fromkeys(_CA_VARIABLES, CA_BUNDLE)


def configure_office(rootfs: Path, clients: HostClients | None = None) -> None:
    """Brings an office's root up to date with the host: pip's and npm's mirrors, and authorities that the host trusts and
    the office does not. Takes milliseconds and writes nothing when all is so already (the first call in a process asks
    the host's clients, which takes up to a second: `read_host_clients` in a thread beforehand avoids that). The root may
    be hostile. Raises `VolumeError`."""
    clients = clients or last_host_clients()
    _set(rootfs, PIP_FILE, pip_config(clients))
    for path in NPM_FILES:
        _set(rootfs, path, npm_config(clients))
    trust_what_the_host_trusts(rootfs)


def pip_config(clients: HostClients) -> str | None:
    """`pip.conf` with the host's indexes; None where pip's own default will do."""
    lines: list[str] = []
    if clients.pip_index_url:
        lines.append(f"index-url = {clients.pip_index_url}")
    if clients.pip_extra_index_urls:
        lines.append("extra-index-url =" + "".join(f"\n    {url}" for url in clients.pip_extra_index_urls))
    return "\n".join([f"# {MARK}", "[global]", *lines, ""]) if lines else None


def npm_config(clients: HostClients) -> str | None:
    """`npmrc` with the host's registry; None without npm on the host."""
    return f"; {MARK}\nregistry={clients.npm_registry}\n" if clients.npm_registry else None


def trust_what_the_host_trusts(rootfs: Path) -> int:
    """Adds the host's certificate authorities that the office's bundle lacks, to the bundle and to where
    `update-ca-certificates` finds them again; what the agent added stays. How many were added."""
    bundle = read_file(rootfs, CA_BUNDLE, bytes_max=BUNDLE_BYTES_MAX) or b""
    missing = _missing(bundle, authorities.host_bundle())
    if missing:
        for text in missing:
            name = f"host-{hashlib.sha256(text.encode()).hexdigest()[:12]}.crt"
            write_file(rootfs, f"/{authorities.LOCAL_DIR}/{name}", text)
        if bundle and not bundle.endswith(b"\n"):
            bundle += b"\n"
        write_file(rootfs, CA_BUNDLE, bundle + "".join(missing).encode())
    return len(missing)


@functools.lru_cache(maxsize=4)  # offices of one image share their bundle
def _missing(bundle: bytes, host_bundle: str) -> list[str]:
    known = set(authorities.certificates(bundle.decode("utf-8", "replace")))
    return [text for text in authorities.certificates(host_bundle) if text not in known]


def _set(rootfs: Path, path: str, content: str | None) -> None:
    """Writes the file, or removes it when it is one of ours; a file that the agent wrote stays."""
    present = read_file(rootfs, path, bytes_max=64 * 1024)
    ours = present is not None and MARK.encode() in present
    if present is not None and not ours:
        return
    if content is not None:
        write_file(rootfs, path, content)
    elif ours:
        remove_file(rootfs, path)
