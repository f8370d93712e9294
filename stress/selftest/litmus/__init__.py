"""Litmus programs: tiny programs about one rule each, explored in every schedule, with every
outcome graded.

`LITMUS` has them by name; `stress.selftest.litmus.run` runs them.
"""

from __future__ import annotations

from stress.selftest.litmus.registry import FAMILIES as FAMILIES
from stress.selftest.litmus.registry import LITMUS as LITMUS
