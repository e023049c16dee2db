"""The billing desk: customers, and the pages on which they subscribe, change and pay.

Rule 1: an organization has one customer at Stripe, made when it is first needed and linked before
        anything is opened for it. The idempotency key makes two askers get the same one.
Rule 2: who has a live subscription changes it in the portal: a second one would be paid as well.
"""

from __future__ import annotations

import attrs

from meterd.actors.organizations import Organizations
from meterd.core.commands import Audited, ChangeOrganization
from meterd.core.plan import Catalogue, Tier
from meterd.ports.billing import Billing
from meterd.ports.directory import Directory


CUSTOMER_MADE = "a Stripe customer was made for the organization"


def lookup_key(tier: Tier) -> str:
    """Return the name under which a plan's monthly price is found at Stripe."""
    return f"meterd_{tier.value}_monthly"


@attrs.frozen
class AlreadySubscribed:
    """The organization has a live subscription: it is changed in the portal."""


@attrs.frozen
class NotForSale:
    """The plan has no price at Stripe."""

    tier: Tier


class BillingDesk:
    """Opens Stripe's hosted pages for organizations."""

    def __init__(
        self,
        billing: Billing,
        organizations: Organizations,
        directory: Directory,
        catalogue: Catalogue,
    ) -> None:
        self._billing = billing
        self._organizations = organizations
        self._directory = directory
        self._catalogue = catalogue

    async def checkout_url(
        self, organization_id: str, tier: Tier | None, *, return_url: str, actor: str
    ) -> str | AlreadySubscribed | NotForSale:
        """Return the page on which an organization subscribes; without a tier, to the next one.

        Errors: PaymentsUnavailableError, PaymentsRejectedError; as `Organizations.ask`.
        """
        snapshot = await self._organizations.snapshot(organization_id)
        if snapshot.profile.cycle is not None:
            return AlreadySubscribed()
        wanted = tier or _next_tier(snapshot.terms.plan)
        price_id = await self._price(wanted)
        if price_id is None:
            return NotForSale(wanted)
        customer_id = await self._customer(organization_id, actor)
        return await self._billing.checkout_url(
            customer_id=customer_id,
            organization_id=organization_id,
            price_id=price_id,
            return_url=return_url,
        )

    async def portal_url(self, organization_id: str, *, return_url: str, actor: str) -> str:
        """Return the page on which an organization changes its plan and how it pays.

        Errors: PaymentsUnavailableError, PaymentsRejectedError; as `Organizations.ask`.
        """
        customer_id = await self._customer(organization_id, actor)
        return await self._billing.portal_url(customer_id=customer_id, return_url=return_url)

    async def _price(self, tier: Tier) -> str | None:
        known = self._catalogue.plans[tier].stripe_price_ids
        return known[0] if known else await self._billing.price_with(lookup_key(tier))

    async def _customer(self, organization_id: str, actor: str) -> str:
        """Return the organization's customer, made and linked if it has none."""
        profile = (await self._organizations.snapshot(organization_id)).profile
        if profile.stripe_customer_id is not None:
            return profile.stripe_customer_id
        made = await self._billing.create_customer(organization_id, profile.name)
        profile = (await self._organizations.snapshot(organization_id)).profile
        if profile.stripe_customer_id is not None:  # linked by somebody else meanwhile
            return profile.stripe_customer_id
        await self._directory.claim_customer(organization_id, made)
        command = ChangeOrganization(
            audited=Audited(actor=actor, reason=CUSTOMER_MADE), stripe_customer_id=made
        )
        answer = await self._organizations.ask(organization_id, command)
        await self._organizations.durable(organization_id, answer.seq)
        return made


def _next_tier(plan: Tier) -> Tier:
    """Return the plan above, of those that have a price for everybody."""
    return Tier.STARTER if plan is Tier.FREE else Tier.PRO
