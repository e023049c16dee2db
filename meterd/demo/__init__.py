"""The demonstration: a real meterd, real agents over real WebSockets, and an audit at the end.

`service` runs `meterd serve` as its own process, `fleet` is the agents, `screen` draws, `story`
says what happens when. Nothing here is used by the service.
"""
