"""The log: one line per event, nothing secret in it, nothing that moves a terminal."""

from __future__ import annotations

import io
import json
import logging
import sys
import threading
import warnings
from collections.abc import Iterator

import pytest
from hypothesis import given, strategies as st

from meterd.observe import log


ADMIN_KEY = "correct horse battery staple, 32 letters"

CANARIES = {
    "organization key": "mk_live_4fT9canaryQ2b8Zk1LmN0pRsTuVwXyZa",
    "stripe live key": "sk_live_51canaryAAAA",
    "stripe test key": "sk_test_51canaryBBBB",
    "restricted key": "rk_live_51canaryCCCC",
    "webhook secret": "whsec_canary+/DDDD==",
    "bearer header": "Authorization: Bearer canary.EEEE-ffff",
    "basic header": "authorization=Basic Y2FuYXJ5canary==",
    "header pair": repr([(b"authorization", b"canary-in-bytes")]),
    "cookie": "Cookie: session=canary; other=canary2",
    "set-cookie": "set-cookie: __session=canary; HttpOnly",
    "signature": "Stripe-Signature: t=1,v1=canary",
    "bare signature": "t=1700000000,v1=" + "0123456789abcdef" * 4,
    "session token": "eyJhbGciOiJSUzI1NiJ9.canaryGGGG.canaryHHHH",
    "dsn": "postgresql://meterd:can@ary:x/y@db.internal:5432/meterd",
    "redis dsn": "redis://:canary@cache:6379/0",
    "keyword dsn": "host=db password=canary user=meterd",
    "json body": '{"password": "canary", "token":"canary"}',
    "repr of a dict": repr({"stripe_api_key": "canary", "admin_key": "canary"}),
    "configured secret": f"key was {ADMIN_KEY}!",
}
LEAKS = ("canary", "0123456789abcdef", "can@ary", "battery staple")


@pytest.fixture
def lines() -> Iterator[io.StringIO]:
    """Log as JSON into a text, and put everything back afterwards."""
    root = logging.getLogger()
    before = root.handlers[:], root.level, sys.excepthook, threading.excepthook
    stream = io.StringIO()
    log.configure(log_format="json", log_level="debug", secrets=[ADMIN_KEY], stream=stream)
    yield stream
    root.handlers[:], level, sys.excepthook, threading.excepthook = before
    root.setLevel(level)
    logging.captureWarnings(capture=False)


@pytest.fixture
def people_lines(lines: io.StringIO) -> io.StringIO:
    """Log for people into a text."""
    log.configure(log_format="console", log_level="debug", stream=lines)
    return lines


def assert_clean(text: str) -> None:
    """No canary is left."""
    assert [leak for leak in LEAKS if leak in text] == [], text


def test_an_event_is_one_json_object_with_time_level_logger_and_facts(lines: io.StringIO) -> None:
    """Whoever collects logs needs no parser of ours."""
    log.get_logger("meterd.test").info("period_closed", organization_id="org_1", rows=3)

    (line,) = lines.getvalue().splitlines()
    event = json.loads(line)
    assert event.pop("timestamp").endswith("Z")
    assert event == {
        "event": "period_closed",
        "level": "info",
        "logger": "meterd.test",
        "organization_id": "org_1",
        "rows": 3,
    }


@pytest.mark.parametrize("planted", CANARIES.values(), ids=CANARIES.keys())
def test_a_secret_is_masked_wherever_it_is_planted(lines: io.StringIO, planted: str) -> None:
    """Event, value, name, nested, bytes, object, traceback: a leak in one of them is a leak."""
    logger = log.get_logger("meterd.test")

    logger.info(
        planted, value=planted, nested={"deep": [{"er": (planted, planted.encode())}], planted: 1}
    )
    logger.info("object", value=ValueError(planted), kinds={planted})
    try:
        raise RuntimeError(planted) from ValueError(planted)
    except RuntimeError:
        logger.exception("failed")
        logging.getLogger("library").exception("failed with %s", planted)
    logging.getLogger("library").warning("said %s", planted, extra={"header": planted})
    warnings.showwarning(UserWarning(planted), UserWarning, "library.py", 1)

    assert len(lines.getvalue().splitlines()) == 6
    assert_clean(lines.getvalue())


@pytest.mark.parametrize("planted", CANARIES.values(), ids=CANARIES.keys())
def test_secrets_are_masked_in_lines_for_people_too(
    people_lines: io.StringIO, planted: str
) -> None:
    """A terminal is recorded and shared as readily as a file."""
    try:
        raise RuntimeError(planted)
    except RuntimeError:
        log.get_logger("meterd.test").exception(
            planted, value=[planted], headers={"Cookie": "canary"}
        )

    assert "RuntimeError" in people_lines.getvalue()
    assert_clean(people_lines.getvalue())


@pytest.mark.parametrize(
    "name", ["Authorization", "STRIPE_SIGNATURE", "admin-key", "password", "cookie"]
)
def test_a_field_with_a_secret_name_is_masked_whatever_it_holds(
    lines: io.StringIO, name: str
) -> None:
    """A value without a known shape is known by its name."""
    log.get_logger("meterd.test").info("request", **{name: "canary"}, headers=[[name, "canary"]])

    assert_clean(lines.getvalue())


def test_uncaught_exceptions_go_through_the_log(lines: io.StringIO) -> None:
    """The last words of a process are the ones most often copied around."""
    error = RuntimeError("lost " + CANARIES["dsn"])

    sys.excepthook(RuntimeError, error, None)
    thread = threading.Thread(target=lambda: (_ for _ in ()).throw(error))
    thread.start()
    thread.join()

    first, second = (json.loads(line) for line in lines.getvalue().splitlines())
    assert (first["event"], first["level"]) == ("uncaught_exception", "critical")
    assert "RuntimeError: lost" in second["exception"]
    assert_clean(lines.getvalue())


HOSTILE = "line\nbreak\r\x1b[2J\x00\x7f\x9b\u2028\u202e\ud800"


def test_no_byte_of_a_value_ends_a_line_of_json(lines: io.StringIO) -> None:
    """An agent's name must not be able to forge a line of the log."""
    log.get_logger("meterd.test").info(HOSTILE, agent_id=HOSTILE, **{HOSTILE: 1})

    text = lines.getvalue()
    assert text.count("\n") == 1
    assert text.isascii()
    assert text.rstrip("\n").isprintable()
    assert json.loads(text)["agent_id"] == HOSTILE


def test_control_characters_are_escaped_for_people(people_lines: io.StringIO) -> None:
    """A terminal executes what it is shown: titles, clipboards, cleared screens."""
    log.get_logger("meterd.test").info(HOSTILE, agent_id=HOSTILE, **{"k" + HOSTILE: [HOSTILE]})

    text = people_lines.getvalue()
    assert text.count("\n") == 1
    assert text.rstrip("\n").isprintable()
    assert r"\x1b[2J" in text


def test_a_traceback_for_people_keeps_its_lines_and_nothing_else(people_lines: io.StringIO) -> None:
    """Readable, and still unable to move the cursor."""
    try:
        raise RuntimeError("\x1b[2J")
    except RuntimeError:
        log.get_logger("meterd.test").exception("failed")

    assert people_lines.getvalue().count("\n") > 3
    assert "\x1b" not in people_lines.getvalue()


def test_lines_below_the_level_are_not_written(lines: io.StringIO) -> None:
    """Debug lines cost time on the hot path; they must vanish, the libraries' too."""
    log.configure(log_format="json", log_level="warning", stream=lines)

    log.get_logger("meterd.test").info("quiet")
    logging.getLogger("library").info("quiet")
    log.get_logger("meterd.test").warning("loud")

    assert [json.loads(line)["event"] for line in lines.getvalue().splitlines()] == ["loud"]


@pytest.mark.parametrize(
    ("level", "told"), [("info", ["trouble"]), ("debug", ["asked", "trouble"])]
)
def test_libraries_that_tell_of_each_request_do_so_for_debugging_only(
    lines: io.StringIO, level: str, told: list[str]
) -> None:
    """Four lines for each call to Stripe would bury what an operator looks for."""
    log.configure(log_format="json", log_level=level, stream=lines)

    logging.getLogger("stripe").info("asked")
    logging.getLogger("httpx").warning("trouble")

    assert [json.loads(line)["event"] for line in lines.getvalue().splitlines()] == told


def test_values_that_json_does_not_know_are_still_written(lines: io.StringIO) -> None:
    """A log call must never fail because of what it is given."""
    endless: list[object] = []
    endless.append(endless)

    log.get_logger("meterd.test").info(
        "odd", values=[1.5, float("nan"), b"\xff", {1: None}, {2}], endless=endless
    )

    (line,) = lines.getvalue().splitlines()
    assert json.loads(line)["event"] == "odd"


@pytest.mark.slow
@pytest.mark.timeout(20)
@pytest.mark.parametrize(
    "piece",
    ["a.", "a://:", "eyJaaaa-", "token token=", "password='", "basic ", "v1=", "Cookie:", ":@"],
)
def test_masking_a_hostile_text_does_not_hold_the_process(piece: str) -> None:
    """A megabyte that somebody got into a log line must cost milliseconds, not minutes."""
    log.masked(piece * (200_000 // len(piece)))


@given(text=st.text(max_size=200))
def test_masking_twice_is_masking_once(text: str) -> None:
    """Lines that pass two loggers stay readable, and masking ends for any input."""
    once = log.masked(text)

    assert log.masked(once) == once


@given(before=st.text(max_size=20), after=st.text(alphabet=" ,;\n)'\"", max_size=5))
def test_keys_are_masked_in_any_surrounding_text_that_does_not_extend_them(
    before: str, after: str
) -> None:
    """A key is found after punctuation and line ends, and at the end of a text."""
    assert "Canary" not in log.masked(f"{before} mk_live_0Canary0{after}")
