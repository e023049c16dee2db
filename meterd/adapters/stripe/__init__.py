"""Stripe's API on Trio, behind the ports that need it."""
