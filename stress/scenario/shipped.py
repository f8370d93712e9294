"""Where the shipped scenarios are: in the checkout, or where the package was installed."""

from __future__ import annotations

import sys
from pathlib import Path

from stress.scenario.errors import StressError

PLACES = (
    Path(__file__).resolve().parents[2] / "configs",
    Path("configs"),
    Path(sys.prefix) / "share" / "tdp-stress" / "configs",
)
"""Beside the packages of a checkout; in the current directory; below the environment that the
package was installed into."""
MARK = "quick.toml"
"""What tells the folder from another that happens to have its name."""


def configs_root() -> Path:
    """The folder of the shipped scenarios; raises `StressError` where there is none."""
    for place in PLACES:
        if (place / MARK).is_file():
            return place
    told = ", ".join(str(place) for place in PLACES)
    raise StressError(
        f"the shipped scenarios are nowhere to be found (looked in {told}); run it in a checkout, "
        "or install the package again"
    )
