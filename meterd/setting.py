"""The kinds of settings: how each is written, checked, shown and documented.

Rule 1: a parser takes what a TOML file, an environment variable or an option holds and returns
the typed value, or raises ValueError with the end of a sentence: "must be …, not …".
Rule 2: nothing is guessed: a float is no integer, an empty text is no text, 1 is no boolean.
Rule 3: the value of a secret appears in no message; what may be shown comes from `shown`.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, tzinfo
from pathlib import Path
from typing import Any, Final, NamedTuple
from urllib.parse import urlsplit
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import attrs
from typed_settings import Secret


SETTING: Final = "meterd.setting"
"""Key in an attrs field's metadata under which its `Setting` is found."""

MASK: Final = "********"

Parse = Callable[[object], Any]
_CLOCK_TIME = re.compile(r"([01][0-9]|2[0-3]):[0-5][0-9]", re.ASCII)
_INTEGER = re.compile(r"-?[0-9]{1,18}", re.ASCII)
_FLAGS: Final[Mapping[str, bool]] = {
    "true": True,
    "yes": True,
    "on": True,
    "1": True,
    "false": False,
    "no": False,
    "off": False,
    "0": False,
}
_URL_PASSWORD = re.compile(r"(://[^:/@]*):.*@")
_QUERY_PASSWORD = re.compile(r"((?:password|passwd|sslpassword)=)[^&]*", re.IGNORECASE)


@attrs.frozen(kw_only=True)
class Setting:
    """What is known about a setting besides its value: the source of help and reference."""

    doc: str
    parse: Parse
    form: str
    """What may be written, for people: "1000 to 86400000", "enforce, report or off"."""
    unit: str = ""
    is_flag: bool = False
    is_path: bool = False
    is_secret: bool = False
    on_command_line: bool = True


class Address(NamedTuple):
    """A host and TCP port to listen on; port 0 takes a free one.

    No attrs class: typed-settings would look for a table of settings in it.
    """

    host: str
    port: int

    def __str__(self) -> str:
        """Return `host:port`, IPv6 hosts in brackets."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def integer(default: int, *, unit: str, least: int, most: int, doc: str) -> Any:
    """Declare a whole number from `least` to `most`, both included."""

    def parse(value: object) -> int:
        if isinstance(value, str) and _INTEGER.fullmatch(value.strip()):
            value = int(value)
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
            raise ValueError(
                f"must be a whole number of {unit} from {least} to {most}, {_not(value)}"
            )
        return value

    return _field(default, Setting(doc=doc, parse=parse, form=f"{least} to {most}", unit=unit))


def flag(*, doc: str) -> Any:
    """Declare a switch that is off unless set."""

    def parse(value: object) -> bool:
        if isinstance(value, str):
            value = _FLAGS.get(value.strip().lower(), value)
        if not isinstance(value, bool):
            raise ValueError(f"must be true or false, {_not(value)}")  # noqa: TRY004  # one kind of error
        return value

    return _field(False, Setting(doc=doc, parse=parse, form="true or false", is_flag=True))


def choice(default: str, *others: str, doc: str) -> Any:
    """Declare one of a few words."""
    words = (default, *others)
    form = " or ".join((", ".join(words[:-1]), words[-1]))

    def parse(value: object) -> str:
        if value not in words:
            raise ValueError(f"must be {form}, {_not(value)}")
        return str(value)

    return _field(default, Setting(doc=doc, parse=parse, form=form))


def text(default: str, *, accepts: Callable[[str], bool], form: str, doc: str) -> Any:
    """Declare text of a form that a function knows."""

    def parse(value: object) -> str:
        found = _text(value)
        if not accepts(found):
            raise ValueError(f"must be {form}, {_not(value)}")
        return found

    return _field(default, Setting(doc=doc, parse=parse, form=form))


def path(
    *, default: Path | None = None, factory: Callable[[Any], Path | None] | None = None, doc: str
) -> Any:
    """Declare a path; one in a file is relative to it, others to the working directory."""

    def parse(value: object) -> Path | None:
        if value is None or isinstance(value, Path):
            return value
        return Path(_text(value)).expanduser()

    setting = Setting(doc=doc, parse=parse, form="a path", is_path=True)
    return _field(attrs.Factory(factory, takes_self=True) if factory else default, setting)


def clock_time(default: str, *, doc: str) -> Any:
    """Declare a time of day, `HH:MM`."""

    def parse(value: object) -> str:
        if not isinstance(value, str) or not _CLOCK_TIME.fullmatch(value.strip()):
            raise ValueError(f"must be a time of day from 00:00 to 23:59, {_not(value)}")
        return value.strip()

    return _field(default, Setting(doc=doc, parse=parse, form="HH:MM, from 00:00 to 23:59"))


def time_zone(default: str, *, doc: str) -> Any:
    """Declare a time zone by its name in the tz database."""

    def parse(value: object) -> str:
        try:
            zone_of(_text(value))
        except (ZoneInfoNotFoundError, ValueError, OSError):
            raise ValueError(
                f"must be a name of the tz database such as Europe/Berlin, {_not(value)}"
            ) from None
        return _text(value)

    return _field(default, Setting(doc=doc, parse=parse, form="UTC, or a tz database name"))


def zone_of(name: str) -> tzinfo:
    """Return a time zone by name; UTC needs no tz database. Errors: ZoneInfoNotFoundError."""
    return UTC if name == "UTC" else ZoneInfo(name)


def address(default: str, *, doc: str) -> Any:
    """Declare `host:port`."""
    return _field(default, Setting(doc=doc, parse=_address, form="host:port, [ipv6]:port"))


def url(*schemes: str, doc: str, secret: bool = False, on_command_line: bool = True) -> Any:
    """Declare an optional URL of one of the schemes; a `secret` one may hold a password."""
    form = "a URL that starts with " + " or ".join(f"{scheme}://" for scheme in schemes)

    def parse(value: object) -> str | Secret[str] | None:
        if value is None:
            return None
        plain = value.get_secret_value() if isinstance(value, Secret) else _text(value)
        try:
            parts = urlsplit(plain)
            known = parts.scheme in schemes and (parts.port is None or parts.port >= 0)
        except ValueError:
            known = False
        if not known or any(ord(letter) <= 0x20 for letter in plain):  # noqa: PLR2004  # control, space
            raise ValueError(f"must be {form}" + ("" if secret else f", {_not(plain)}"))
        if isinstance(value, Secret):
            return value
        return Secret(plain) if secret else plain

    setting = Setting(
        doc=doc, parse=parse, form=form, is_secret=secret, on_command_line=on_command_line
    )
    return _field(None, setting)


def secret(*, least: int = 1, most: int = 1_024, doc: str) -> Any:
    """Declare an optional secret of `least` to `most` printable ASCII characters."""

    def parse(value: object) -> Secret[str] | None:
        if value is None:
            return None
        return _secret(value, least=least, most=most)

    form = f"{least} to {most} printable ASCII characters"
    setting = Setting(doc=doc, parse=parse, form=form, is_secret=True, on_command_line=False)
    return _field(None, setting)


def secrets(*, doc: str) -> Any:
    """Declare any number of secrets, separated by commas; an empty one is refused."""

    def parse(value: object) -> tuple[Secret[str], ...]:
        if not value and not isinstance(value, str):
            return ()
        return tuple(_secret(item, least=1, most=1_024) for item in _items(value))

    setting = Setting(
        doc=doc,
        parse=parse,
        form="secrets, separated by commas",
        is_secret=True,
        on_command_line=False,
    )
    return _field((), setting)


def origins(*, doc: str) -> Any:
    """Declare any number of web origins, separated by commas."""

    def parse(value: object) -> tuple[str, ...]:
        if not value and not isinstance(value, str):
            return ()
        return tuple(_origin(item) for item in _items(value))

    return _field(
        (), Setting(doc=doc, parse=parse, form="origins (https://example.com), separated by commas")
    )


def _origin(value: object) -> str:
    found = _text(value).lower()
    parts = urlsplit(found)
    if parts.scheme not in {"https", "http"} or not parts.netloc or parts.geturl() != found:
        raise ValueError(f"must be an origin such as https://example.com, {_not(value)}")
    if parts.path or parts.query or parts.fragment or parts.username is not None:
        raise ValueError(f"must be an origin without a path, {_not(value)}")
    return found


def networks(*, doc: str) -> Any:
    """Declare any number of IP addresses and networks, separated by commas."""

    def parse(value: object) -> tuple[ipaddress.IPv4Network | ipaddress.IPv6Network, ...]:
        if not value and not isinstance(value, str):
            return ()
        return tuple(_network(item) for item in _items(value))

    return _field(
        (),
        Setting(
            doc=doc, parse=parse, form="IP addresses or networks (10.0.0.0/8), separated by commas"
        ),
    )


def shown(value: object) -> str:
    """Return a setting's value for people: secrets masked, of URLs only the password."""
    match value:
        case None:
            return ""
        case bool():
            return "true" if value else "false"
        case Secret():
            plain = str(value.get_secret_value())
            if "://" not in plain:
                return MASK
            return _QUERY_PASSWORD.sub(rf"\1{MASK}", _URL_PASSWORD.sub(rf"\1:{MASK}@", plain))
        case Address():
            return str(value)
        case tuple():
            return ",".join(shown(item) for item in value)
        case _:
            return str(value)


def _field(default: object, setting: Setting) -> Any:
    def convert(value: object) -> Any:
        return setting.parse(value)

    return attrs.field(default=default, converter=convert, metadata={SETTING: setting})


def _address(value: object) -> Address:
    if isinstance(value, Address):
        return value
    host, colon, port = _text(value).rpartition(":")
    bare = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    if (
        not colon
        or not bare
        or (":" in bare and bare == host)
        or not re.fullmatch(r"[0-9]{1,5}", port, re.ASCII)
    ):
        raise ValueError(f"must look like 127.0.0.1:8080 or [::1]:8080, {_not(value)}")
    if int(port) > 65_535:  # noqa: PLR2004  # the last TCP port
        raise ValueError(f"must name a port from 0 to 65535, {_not(value)}")
    return Address(bare, int(port))


def _network(value: object) -> ipaddress.IPv4Network | ipaddress.IPv6Network:
    if isinstance(value, ipaddress.IPv4Network | ipaddress.IPv6Network):
        return value
    try:
        return ipaddress.ip_network(_text(value))
    except ValueError:
        raise ValueError(
            f"must be IP addresses or networks such as 10.0.0.0/8, {_not(value)}"
        ) from None


def _items(value: object) -> Iterable[object]:
    if isinstance(value, str):
        return [item.strip() for item in value.split(",")]
    if isinstance(value, list | tuple):
        return value
    raise ValueError("must be a list, or a text separated by commas")  # one kind of error


def _secret(value: object, *, least: int, most: int) -> Secret[str]:
    plain = value.get_secret_value() if isinstance(value, Secret) else value
    if not isinstance(plain, str) or not plain.isascii() or not plain.isprintable():
        raise ValueError("must be printable ASCII text")
    if not plain:
        raise ValueError("is empty: give the secret, or leave the setting out")
    if plain != plain.strip():
        raise ValueError("must not begin or end with a space")
    if not least <= len(plain) <= most:
        raise ValueError(f"must have {least} to {most} characters, and has {len(plain)}")
    return value if isinstance(value, Secret) else Secret(plain)


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise ValueError(f"must be text, {_not(value)}")  # noqa: TRY004  # one kind of error
    if not value.strip():
        raise ValueError("is empty: give a value, or leave the setting out")
    if "\0" in value:
        raise ValueError("must not contain NUL")
    return value.strip()


def _not(value: object) -> str:
    return f"not {str(value)[:80]!r}"
