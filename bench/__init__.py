"""Measurements anybody can repeat: `python -m bench.boot`, or `python -m bench` for all."""
