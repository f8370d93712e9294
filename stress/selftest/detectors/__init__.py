"""Tests of the testers: what detects must be seen to detect."""
