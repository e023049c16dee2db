"""What lies sealed in the database: readable for one place and one key only."""

from __future__ import annotations

from meterd.adapters.sealing import Sealer


SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
SEALER = Sealer.of(b"k" * 32)


def test_what_is_sealed_can_be_opened_where_it_was_sealed() -> None:
    """A signing secret has to come back as it was, or no signature would be right."""
    sealed = SEALER.seal(SECRET, "whk_1")

    assert SECRET not in sealed
    assert sealed.isascii()
    assert SEALER.open(sealed, "whk_1") == SECRET


def test_a_sealed_secret_opens_at_no_other_place_and_under_no_other_key() -> None:
    """Whoever may write rows cannot put one endpoint's secret into another; leaks stay sealed."""
    sealed = SEALER.seal(SECRET, "whk_1")

    assert SEALER.open(sealed, "whk_2") is None
    assert Sealer.of(b"o" * 32).open(sealed, "whk_1") is None
    assert SEALER.open(sealed[:-4], "whk_1") is None
    assert SEALER.open("sealed:not base64!", "whk_1") is None


def test_a_secret_stored_before_secrets_were_sealed_is_still_one() -> None:
    """Endpoints that exist go on working."""
    assert SEALER.open(SECRET, "whk_1") == SECRET
