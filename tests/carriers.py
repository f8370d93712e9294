"""What the tasks of a schedule run on, for tests: every carrier that there is here."""

from __future__ import annotations

import pytest

from stress.engines.carrier_choice import GREENLETS, THREADS, missing

needs_greenlets = pytest.mark.skipif(missing() is not None, reason=f"no greenlets: {missing()}")

CARRIERS = [THREADS, pytest.param(GREENLETS, marks=needs_greenlets)]
"""For `parametrize`: both, the second where it is installed."""
