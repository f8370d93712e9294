"""Engines: how a scenario's actors get to run."""
