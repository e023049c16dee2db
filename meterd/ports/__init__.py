"""What the actors and the front need from the outside, as protocols, one module for each noun.

Adapters implement them; `meterd.system` says which stands behind which. Every method of a store
may raise `StoreUnavailableError` (transient: try again) or `StoreRejectedError` (it never will
work); a cancelled or failed write may have happened, so writes are safe to repeat.
"""
