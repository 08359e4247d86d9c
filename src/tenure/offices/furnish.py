"""What Tenure writes into an office's root before it boots: names of its neighbours, keys of its door, its network's manners.

The root belongs to the agent, who may have replaced any file by a symbolic link; so everything goes through
`tenure.offices.rootfs`, which never follows one out of the root.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import asyncssh

from tenure.data.s3.clients import TOKEN, TOKEN_FILE
from tenure.errors import VolumeError
from tenure.offices.models import OfficeRecord
from tenure.offices.rootfs import read_file, remove_file, write_file
from tenure.secrets.egress.clients import configure_office
from tenure.settings import Settings

HOSTS = """\
127.0.0.1 localhost {name}
::1 localhost
127.0.0.2 db
127.0.0.3 s3
127.0.0.4 api
127.0.0.5 egress
"""
SUDO = b"""\
#!/bin/sh
# gVisor gives no privileges to set-uid programs, so this asks officed, which is root here.
exec /.tenure/bin/officed sudo "$@"
"""
HOST_KEY = "etc/ssh/ssh_host_ed25519_key"
HOST_KEY_KINDS = ("ed25519", "ecdsa", "rsa", "dsa")


def hosts_file(name: str, neighbours: Mapping[str, str]) -> str:
    """/etc/hosts of the office `name`; `neighbours` are addresses by host."""
    return HOSTS.format(name=name) + "".join(f"{address} {host}\n" for host, address in neighbours.items())


def before_boot(
    settings: Settings, record: OfficeRecord, volume: Path, environment: dict[str, str], hosts: str
) -> list[str]:
    """Writes what may have changed since the last boot. Fast: it is on the way of every wake. Returns what could not be
    written: an office whose root is full or ruined boots all the same, for how else could it be mended."""
    root = volume / "rootfs"
    # One line for all: sshd takes the first SetEnv line and ignores every other.
    setenv = "SetEnv " + " ".join(f'"{name}={value}"' for name, value in sorted(environment.items()))
    steps: tuple[Callable[[], object], ...] = (
        lambda: in_common(settings, volume),
        lambda: write_file(root, "etc/hostname", f"{record.name}\n".encode()),
        lambda: write_file(root, "etc/hosts", hosts.encode()),
        lambda: _ensure_host_key(root, record.name),
        lambda: write_file(root, "etc/ssh/sshd_config.d/20-tenure-environment.conf", f"{setenv}\n".encode()),
    )
    complaints: list[str] = []
    for step in steps:
        try:
            step()
        except VolumeError as error:
            complaints.append(error.message)
    return complaints


def _ensure_host_key(root: Path, name: str) -> None:
    if read_file(root, HOST_KEY, bytes_max=1) is None:
        key = asyncssh.generate_private_key("ssh-ed25519", name)  # pyright: ignore[reportUnknownMemberType]
        write_file(root, HOST_KEY, key.export_private_key(), mode=0o600)
        write_file(root, HOST_KEY + ".pub", key.export_public_key())


def forget_identity(volume: Path) -> None:
    """Removes what says which machine this is, from the clone that becomes another one: its first boot makes its own."""
    for kind in HOST_KEY_KINDS:
        for ending in ("", ".pub"):
            remove_file(volume / "rootfs", f"etc/ssh/ssh_host_{kind}_key{ending}")


def in_common(settings: Settings, volume: Path) -> None:
    """What is the same in all offices. Finding it so already takes a fraction of writing it."""
    root = volume / "rootfs"
    write_file(root, "usr/local/bin/sudo", SUDO, mode=0o755)
    owner_key = settings.keys_dir / "id_ed25519.pub"
    if owner_key.exists():
        write_file(root, "etc/tenure/authorized_keys", owner_key.read_bytes())
    write_file(root, TOKEN_FILE.lstrip("/"), TOKEN)
    configure_office(root)
