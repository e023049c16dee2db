"""The web translates requests into messages and outcomes into responses; it decides nothing."""
