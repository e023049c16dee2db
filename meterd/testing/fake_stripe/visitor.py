"""The hosted pages as a person sees them: one button to pay, a few in the portal.

Plain HTML forms, so the demo can be clicked through without a card. Everything shown is escaped.
"""

from __future__ import annotations

from html import escape
from http import HTTPStatus

from meterd.testing.fake_stripe import hosted, standing
from meterd.testing.fake_stripe.api import Answer, Call
from meterd.testing.fake_stripe.errors import Json, StripeRefusedError
from meterd.testing.fake_stripe.forms import decode_form
from meterd.testing.fake_stripe.world import World


def answer(world: World, call: Call) -> Answer:
    """Show a hosted page, or do what its button says."""
    steps = call.path.removeprefix("/pay/").split("/")
    try:
        match (call.method, *steps):
            case ("GET", "checkout", session_id):
                return _checkout_page(world, session_id)
            case ("POST", "checkout", session_id):
                session = hosted.complete_session(world, session_id)
                return _redirect(session["success_url"] or world.base_url, session_id)
            case ("GET", "portal", session_id):
                return _portal_page(world, session_id)
            case ("POST", "portal", session_id):
                chosen = decode_form(call.body.decode("utf-8", "replace"))
                if "price" in chosen:
                    hosted.change_plan(world, session_id, chosen["price"])
                else:
                    hosted.cancel_in_portal(world, session_id)
                return _redirect(f"{world.base_url}/pay/portal/{session_id}", session_id)
            case ("GET", "invoice", invoice_id):
                return _page("Invoice", _invoice_rows(world, [world.get("invoice", invoice_id)]))
            case _:
                return _page("Not found", "<p>No such page.</p>", status=HTTPStatus.NOT_FOUND)
    except StripeRefusedError as refused:
        return _page("Sorry", f"<p>{escape(refused.message)}</p>", status=refused.status)


def _redirect(url: str, session_id: str) -> Answer:
    target = url.replace("{CHECKOUT_SESSION_ID}", session_id)
    headers = {"location": target.replace("\r", "").replace("\n", "")}
    return Answer(status=HTTPStatus.SEE_OTHER, body=b"", headers=headers)


def _page(title: str, body: str, *, status: int = HTTPStatus.OK) -> Answer:
    html = (
        "<!doctype html><html lang=en><meta charset=utf-8>"
        f"<title>{escape(title)} (fake Stripe)</title><body><h1>{escape(title)}</h1>{body}"
        "<p><small>A test double: no money moves here.</small></p>"
    )
    headers = {"content-type": "text/html; charset=utf-8"}
    return Answer(status=status, body=html.encode(), headers=headers)


def _money(amount: int | None, currency: str | None) -> str:
    cents = amount or 0
    sign = "-" if cents < 0 else ""
    return escape(f"{sign}{abs(cents) // 100}.{abs(cents) % 100:02d} {(currency or 'usd').upper()}")


def _checkout_page(world: World, session_id: str) -> Answer:
    session = world.get("checkout.session", session_id)
    if session["status"] != "open":
        return _page("Checkout", f"<p>This session is {escape(session['status'])}.</p>")
    due = _money(session["amount_total"], session["currency"])
    form = f"<form method=post><button>Pay {due}</button></form>"
    back = session["cancel_url"]
    link = f'<p><a href="{escape(back)}">Go back</a></p>' if back else ""
    return _page("Subscribe", form + link)


def _portal_page(world: World, session_id: str) -> Answer:
    session = world.get("billing_portal.session", session_id)
    configuration = world.get("billing_portal.configuration", session["configuration"])
    prices = [
        world.get("price", price_id)
        for each in configuration["features"]["subscription_update"]["products"] or []
        for price_id in each["prices"]
    ]
    parts = []
    for subscription in world.table("subscription").values():
        if subscription["customer"] != session["customer"]:
            continue
        parts.append(f"<h2>Subscription: {escape(subscription['status'])}</h2>")
        if subscription["status"] not in standing.ENDED:
            current = subscription["items"]["data"][0]["price"]["id"]
            parts.extend(
                _price_button(price, is_current=price["id"] == current) for price in prices
            )
            parts.append("<form method=post><button name=cancel value=1>Cancel</button></form>")
    own = [
        each for each in world.newest_first("invoice") if each["customer"] == session["customer"]
    ]
    parts.append(_invoice_rows(world, own))
    if session["return_url"]:
        parts.append(f'<p><a href="{escape(session["return_url"])}">Return</a></p>')
    return _page("Billing", "".join(parts))


def _price_button(price: Json, *, is_current: bool) -> str:
    name = escape(price["nickname"] or price["id"])
    amount = _money(price["unit_amount"], price["currency"])
    state = " disabled" if is_current else ""
    return (
        f'<form method=post><button name=price value="{escape(price["id"])}"{state}>'
        f"{name}: {amount}</button></form>"
    )


def _invoice_rows(world: World, found: list[Json]) -> str:
    rows = []
    for invoice in found:
        due = _money(invoice["amount_due"], invoice["currency"])
        rows.append(
            f"<h3>{escape(invoice['number'] or 'Draft')}: {due}, "
            f"{escape(invoice['status'])}</h3><ul>"
        )
        for line in world.hidden.lines.get(invoice["id"], []):
            amount = _money(line["amount"], line["currency"])
            rows.append(f"<li>{escape(line['description'] or '')}: {amount}</li>")
        rows.append("</ul>")
    return "".join(rows)
