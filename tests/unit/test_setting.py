"""Each kind of setting: what it accepts, what it refuses, what it shows."""

from __future__ import annotations

import ipaddress
from pathlib import Path

import pytest
from typed_settings import Secret

from meterd.config import setting_fields
from meterd.setting import MASK, Address, Parse, shown


PARSERS: dict[str, Parse] = {name: setting.parse for name, setting, _ in setting_fields()}


@pytest.mark.parametrize("value", [1_000, "1000", " 1000 "], ids=repr)
def test_whole_numbers_are_accepted_as_number_and_as_text(value: object) -> None:
    """TOML gives a number, the environment a text; both mean the same."""
    assert PARSERS["task_timeout_ms"](value) == 1_000


@pytest.mark.parametrize(
    "value",
    [999, 3_600_001, 1_000.0, True, "1e3", "1_000", "", "١٠٠٠", None, "9" * 4_000],
    ids=repr,
)
def test_what_is_not_a_whole_number_in_range_is_refused(value: object) -> None:
    """A duration is never guessed: no float, no boolean, no foreign digits, no overflow."""
    with pytest.raises(ValueError, match="whole number of milliseconds from 1000 to 3600000"):
        PARSERS["task_timeout_ms"](value)


@pytest.mark.parametrize(
    ("value", "expected"), [(True, True), ("yes", True), ("OFF", False), ("0", False)], ids=repr
)
def test_switches_have_the_usual_spellings(value: object, expected: bool) -> None:
    """People write METERD_TAKEOVER=1 and takeover = true."""
    assert PARSERS["takeover"](value) is expected


@pytest.mark.parametrize("value", ["", "maybe", 1, None], ids=repr)
def test_what_is_no_switch_is_refused(value: object) -> None:
    """A misspelt "yes" must not quietly mean no."""
    with pytest.raises(ValueError, match="must be true or false"):
        PARSERS["takeover"](value)


def test_a_word_that_is_not_offered_is_refused_with_the_words_that_are() -> None:
    """The message is the documentation that somebody reads at night."""
    with pytest.raises(ValueError, match=r"must be enforce, report or off, not 'Enforce'"):
        PARSERS["plausibility"]("Enforce")


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [
        ("127.0.0.1:8080", "127.0.0.1", 8080),
        ("[::1]:0", "::1", 0),
        ("localhost:65535", "localhost", 65535),
    ],
)
def test_addresses_are_read_and_written_alike(text: str, host: str, port: int) -> None:
    """What is printed as the address can be given as the address."""
    parsed = PARSERS["bind"](text)

    assert parsed == Address(host, port)
    assert str(parsed) == text


@pytest.mark.parametrize(
    "text", ["8080", ":8080", "::1:8080", "host:", "host:65536", "host:-1", "[]:1"]
)
def test_addresses_that_could_be_misread_are_refused(text: str) -> None:
    """`::1:8080` is an address without a port as much as one with."""
    with pytest.raises(ValueError, match="must"):
        PARSERS["bind"](text)


@pytest.mark.parametrize(
    "text", ["mysql://h/db", "postgresql", "postgresql://h:port/db", "", "postgresql://h/a b"]
)
def test_a_database_url_that_cannot_work_is_refused_without_being_repeated(text: str) -> None:
    """The message lands in logs, and a mistyped URL still holds the password."""
    with pytest.raises(ValueError, match="URL|empty") as refused:
        PARSERS["database_url"](text + "?password=canary" if text else text)

    assert "canary" not in str(refused.value)


def test_an_admin_key_takes_32_to_256_printable_ascii_characters() -> None:
    """The bounds of the contract, on both sides."""
    parse = PARSERS["admin_key"]

    assert parse("k" * 32).get_secret_value() == "k" * 32
    assert parse("~" * 256).get_secret_value() == "~" * 256
    for wrong in ("k" * 31, "k" * 257, "ü" * 40, "k" * 40 + "\n", " " + "k" * 40, "", 5):
        with pytest.raises(ValueError, match="must|empty"):
            parse(wrong)


def test_an_empty_webhook_secret_is_refused_even_between_good_ones() -> None:
    """An empty secret would verify signatures that anybody can make."""
    for wrong in ("", ",", "whsec_a,,whsec_b", ["whsec_a", ""]):
        with pytest.raises(ValueError, match="empty"):
            PARSERS["stripe_webhook_secrets"](wrong)

    two = PARSERS["stripe_webhook_secrets"]("whsec_a, whsec_b")
    assert [secret.get_secret_value() for secret in two] == ["whsec_a", "whsec_b"]


def test_proxies_are_addresses_or_networks() -> None:
    """10.0.0.1/8 is a network with host bits: a typing error, and trust is at stake."""
    parse = PARSERS["trusted_proxies"]

    assert parse("10.0.0.0/8,::1") == (
        ipaddress.ip_network("10.0.0.0/8"),
        ipaddress.ip_network("::1"),
    )
    assert parse([]) == ()
    for wrong in ("10.0.0.1/8", "proxy.internal", ""):
        with pytest.raises(ValueError, match="must be IP addresses|empty"):
            parse(wrong)


def test_every_parser_accepts_its_own_result() -> None:
    """A Config built from another's values is the same Config."""
    given = {
        "bind": "[::1]:1",
        "database_url": "postgresql://u:p@h/d",
        "data_dir": "d",
        "admin_key": "k" * 32,
        "stripe_webhook_secrets": "whsec_a",
        "trusted_proxies": "::1",
        "takeover": "yes",
        "plausibility": "off",
        "task_timeout_ms": "1000",
        "upgrade_url": "https://u.example",
    }

    for name, text in given.items():
        once = PARSERS[name](text)
        assert PARSERS[name](once) == once


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, ""),
        (True, "true"),
        (Path("a/b"), "a/b"),
        (Secret("whsec_canary"), MASK),
        ((Secret("a"), Secret("b")), f"{MASK},{MASK}"),
        (Secret("postgresql://user:can@ary:/@host/db"), f"postgresql://user:{MASK}@host/db"),
        (Secret("redis://:canary@host"), f"redis://:{MASK}@host"),
        (
            Secret("postgresql:///db?host=/run&password=canary&x=1"),
            f"postgresql:///db?host=/run&password={MASK}&x=1",
        ),
        (Secret("postgresql://host/db"), "postgresql://host/db"),
    ],
)
def test_what_is_shown_holds_no_secret(value: object, text: str) -> None:
    """`meterd config` is what people paste into a ticket."""
    assert shown(value) == text
