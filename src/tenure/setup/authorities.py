"""Certificate authorities that the host trusts and Debian does not: an office has to trust them too.

They go into the image one by one below `/usr/local/share/ca-certificates`, where `update-ca-certificates` finds them again
when the package ca-certificates is upgraded in the office.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

HOST_BUNDLE = Path("/etc/ssl/certs/ca-certificates.crt")
LOCAL_DIR = "usr/local/share/ca-certificates"
_BEGIN, _END = "-----BEGIN CERTIFICATE-----", "-----END CERTIFICATE-----"


def certificates(bundle: str) -> list[str]:
    """The PEM certificates of a bundle, each once, in order. Takes time in proportion to its length, whatever is in it: an
    office's bundle is the agent's to write."""
    found: dict[str, None] = {}
    for text in bundle.split(_END)[:-1]:
        _, begin, body = text.partition(_BEGIN)
        if begin and body[:1].isspace():
            lines = (line.strip() for line in f"{begin}{body}{_END}".split("\n"))
            found["\n".join(lines) + "\n"] = None
    return list(found)


def host_bundle() -> str:
    """What this host trusts: `SSL_CERT_FILE` when it is set, else Debian's bundle; empty when there is neither."""
    named = os.environ.get("SSL_CERT_FILE")
    for path in (Path(named) if named else None, HOST_BUNDLE):
        if path and path.is_file():
            return path.read_text(errors="replace")
    return ""


def add_missing(rootfs: Path, bundle: str) -> int:
    """Writes the certificates of `bundle` that the packages in `rootfs` do not bring; returns how many."""
    known: set[str] = set()
    for file in (rootfs / "usr/share/ca-certificates").rglob("*.crt"):
        known.update(certificates(file.read_text(errors="replace")))
    missing = [text for text in certificates(bundle) if text not in known]
    target = rootfs / LOCAL_DIR
    target.mkdir(parents=True, exist_ok=True)
    for text in missing:
        (target / f"host-{hashlib.sha256(text.encode()).hexdigest()[:12]}.crt").write_text(text)
    return len(missing)
