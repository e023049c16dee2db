"""The edge: implements ports, and translates every error of the libraries behind them."""
