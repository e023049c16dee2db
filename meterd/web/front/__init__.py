"""The parts of the front door, one noun a file: heads, addresses, hot requests, agent streams.

`meterd.web.front_door` puts them together; nothing else of meterd imports from here but names
of the interfaces (`HotPath`, `StreamGate`, `FrontDoorLimits`).
"""
