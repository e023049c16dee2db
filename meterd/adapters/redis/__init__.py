"""Redis: live quotas for processes that must not call meterd; nothing is read back from it."""
