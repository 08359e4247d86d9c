"""Which addresses an allowed name may lead to. Pure but for `is_own`.

A name is the owner's to allow; where it leads is up to whoever runs its DNS. So after resolution everything that is not
the public internet is refused: the host itself, its networks, the metadata services of clouds.
"""

from __future__ import annotations

import ipaddress
import socket

Address = ipaddress.IPv4Address | ipaddress.IPv6Address

_NEVER = tuple(
    ipaddress.ip_network(network)
    for network in (
        "0.0.0.0/8",
        "169.254.0.0/16",  # link-local, and the metadata services of clouds
        "192.0.0.0/24",
        "192.88.99.0/24",
        "198.18.0.0/15",
        "224.0.0.0/4",
        "240.0.0.0/4",
        "::/128",
        "100::/64",
        "fe80::/10",
        "fec0::/10",
        "ff00::/8",
        "fd00:ec2::254/128",  # a metadata service too
    )
)
_LOOPBACK = tuple(ipaddress.ip_network(network) for network in ("127.0.0.0/8", "::1/128"))
_PRIVATE = tuple(
    ipaddress.ip_network(network)
    for network in ("10.0.0.0/8", "100.64.0.0/10", "172.16.0.0/12", "192.168.0.0/16", "fc00::/7")
)
# Not refused: the networks for documentation, which lead nowhere on the internet and are seen where a sealed network
# names its mirrors.


def refusal(text: str, *, private_allowed: bool = False, loopback_allowed: bool = False) -> str | None:
    """Why the address `text` must not be connected to; None when it may."""
    address = unwrap(ipaddress.ip_address(text.partition("%")[0]))
    if _in(address, _LOOPBACK):
        return None if loopback_allowed else f"it leads to {address}, which is this machine itself"
    if _in(address, _NEVER):
        return f"it leads to {address}, which is no address of the internet"
    if _in(address, _PRIVATE):
        return None if private_allowed else f"it leads to {address}, which is on a private network"
    return None


def unwrap(address: Address) -> Address:
    """The IPv4 address inside an IPv6 one that only carries it (mapped, 6to4, Teredo, NAT64), else `address`."""
    if isinstance(address, ipaddress.IPv4Address):
        return address
    if address.ipv4_mapped is not None:
        return address.ipv4_mapped
    if address.sixtofour is not None:
        return address.sixtofour
    if address.teredo is not None:
        return address.teredo[1]
    for prefix in ("64:ff9b::/96", "64:ff9b:1::/48", "::/96"):
        if address in ipaddress.ip_network(prefix) and int(address) > 1:
            return ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
    return address


def is_own(text: str) -> bool:
    """Whether `text` is an address of this machine, public ones included: only those can be bound."""
    address = ipaddress.ip_address(text.partition("%")[0])
    family = socket.AF_INET if address.version == 4 else socket.AF_INET6
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as sock:
            sock.bind((str(address), 0))
    except OSError:
        return False
    return True


def _in(address: Address, networks: tuple[ipaddress.IPv4Network | ipaddress.IPv6Network, ...]) -> bool:
    return any(address.version == network.version and address in network for network in networks)
