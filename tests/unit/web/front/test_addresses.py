"""Client addresses through trusted proxies, and what one address may hold open."""

from __future__ import annotations

import pytest

from meterd.web.front.addresses import AddressBook, TrustedProxies, counting_key, parse_address


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("192.0.2.1", "192.0.2.1"),
        (" 192.0.2.1:80 ", "192.0.2.1"),
        ("[2001:db8::1]:80", "2001:db8::1"),
        ("2001:DB8::1", "2001:db8::1"),
        ("::ffff:192.0.2.1", "192.0.2.1"),
        ("fe80::1%eth0", "fe80::1"),
        ("unknown", "None"),
        ("", "None"),
    ],
)
def test_addresses_are_read_in_every_form_that_proxies_write(text: str, address: str) -> None:
    """Load balancers add ports and brackets."""
    assert str(parse_address(text)) == address


@pytest.mark.parametrize(
    ("peer", "forwarded_for", "client"),
    [
        ("203.0.113.1", [b"192.0.2.1"], "203.0.113.1"),
        ("10.0.0.1", [], "10.0.0.1"),
        ("10.0.0.1", [b"192.0.2.1"], "192.0.2.1"),
        ("10.0.0.1", [b"6.6.6.6, 192.0.2.1, 10.0.0.2"], "192.0.2.1"),
        ("10.0.0.1", [b"6.6.6.6", b"192.0.2.1"], "192.0.2.1"),
        ("10.0.0.1", [b"192.0.2.1, unknown, 10.0.0.2"], "10.0.0.2"),
        ("10.0.0.1", [b"10.0.0.3, 10.0.0.2"], "10.0.0.3"),
        ("10.0.0.1", [b"\xff\xfe"], "10.0.0.1"),
    ],
)
def test_the_client_is_the_first_untrusted_address_from_the_right(
    peer: str, forwarded_for: list[bytes], client: str
) -> None:
    """What stands further left was written by whoever sent the request."""
    assert TrustedProxies(["10.0.0.0/8"]).client_of(peer, forwarded_for) == client


def test_an_address_book_counts_up_to_its_limit_and_forgets_who_left() -> None:
    """An IPv6 customer has a whole /64, so that is what is counted."""
    book = AddressBook(per_address_max=2)
    keys = [book.enter("2001:db8::1"), book.enter("2001:db8::2"), book.enter("2001:db8::3")]
    assert keys == ["2001:db8::/64", "2001:db8::/64", None]
    book.leave("2001:db8::/64")

    assert book.enter("2001:db8::4") == "2001:db8::/64"
    assert book.enter("192.0.2.1") == counting_key("192.0.2.1") == "192.0.2.1"
