"""Certificate authorities that the host trusts and Debian does not: an office has to trust them too.

They go into the image one by one below `/usr/local/share/ca-certificates`, where `update-ca-certificates` finds them again
when the package ca-certificates is upgraded in the office.
"""

from __future__ import annotations

import hashlib
import os
import re
from pathlib import Path

HOST_BUNDLE = Path("/etc/ssl/certs/ca-certificates.crt")
LOCAL_DIR = "usr/local/share/ca-certificates"
_CERTIFICATE = re.compile(r"-----BEGIN CERTIFICATE-----\s.*?-----END CERTIFICATE-----\n?", re.DOTALL)


def certificates(bundle: str) -> list[str]:
    """The PEM certificates of a bundle, each once, in order."""
    found = ("\n".join(line.strip() for line in text.split("\n")) for text in _CERTIFICATE.findall(bundle))
    return list(dict.fromkeys(text.strip() + "\n" for text in found))


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
