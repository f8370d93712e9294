"""Actors: one thread each, with a part to play."""
