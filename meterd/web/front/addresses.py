"""Whose connection this is: peers, trusted proxies, and what an address may hold open.

Rule 1: X-Forwarded-For is believed only as far as the chain of configured proxies reaches, read
from the right: the first address that is not a trusted proxy is the client.
Rule 2: an IPv6 client is counted by its /64, which is what one customer is given.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from functools import lru_cache
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network


_Address = IPv4Address | IPv6Address


@lru_cache(maxsize=8192)
def parse_address(text: str) -> _Address | None:
    """Return the address in `text`, or None; a mapped IPv4 address becomes IPv4.

    Takes what proxies write: `192.0.2.1`, `192.0.2.1:4711`, `2001:db8::1`, `[2001:db8::1]:4711`.
    """
    text = text.strip()
    if text.startswith("["):
        text = text[1:].partition("]")[0]
    elif text.count(":") == 1:
        text = text.partition(":")[0]
    try:
        address = ip_address(text.partition("%")[0])
    except ValueError:
        return None
    if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
        return address.ipv4_mapped
    return address


class TrustedProxies:
    """The networks whose word about their clients is believed; empty: nobody's."""

    def __init__(self, networks: Iterable[str] = ()) -> None:
        """Take networks such as `10.0.0.0/8`; ValueError when one is not a network."""
        self._networks: tuple[IPv4Network | IPv6Network, ...] = tuple(
            ip_network(network, strict=False) for network in networks
        )

    def __contains__(self, text: str) -> bool:
        """Whether the address `text` belongs to a trusted proxy."""
        if not self._networks:
            return False
        address = parse_address(text)
        return address is not None and any(address in network for network in self._networks)

    def client_of(self, peer: str, forwarded_for: Sequence[bytes]) -> str:
        """Return the client's address, given the peer's and every X-Forwarded-For value."""
        client = peer
        if client not in self:
            return client
        hops = [hop for value in forwarded_for for hop in value.decode("latin-1").split(",")]
        for hop in reversed(hops):
            address = parse_address(hop)
            if address is None:  # "unknown", or nonsense: the last believable hop stands
                return client
            client = str(address)
            if client not in self:
                return client
        return client


def counting_key(text: str) -> str:
    """Return the name under which connections of the address `text` are counted."""
    address = parse_address(text)
    if isinstance(address, IPv6Address):
        return str(ip_network((address, 64), strict=False))
    return text if address is None else str(address)


class AddressBook:
    """How many connections each address holds open."""

    def __init__(self, *, per_address_max: int) -> None:
        self._per_address_max = per_address_max
        self._open: Counter[str] = Counter()

    def enter(self, address: str) -> str | None:
        """Count one more connection; None when the address already has as many as it may.

        Whoever gets a key must give it to `leave`.
        """
        key = counting_key(address)
        if self._open[key] >= self._per_address_max:
            return None
        self._open[key] += 1
        return key

    def leave(self, key: str) -> None:
        """Forget one connection that `enter` counted."""
        assert self._open[key] > 0, key
        self._open[key] -= 1
        if not self._open[key]:
            del self._open[key]
