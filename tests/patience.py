"""How long a test waits for what has to happen: far longer than it takes, and not forever.

What is asserted never depends on it. It only turns a hang into a failure that says what was waited
for.
"""

from __future__ import annotations

PATIENCE = 300.0
"""Seconds."""
