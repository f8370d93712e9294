"""Scenarios: what a TOML file may say, and loading it."""
