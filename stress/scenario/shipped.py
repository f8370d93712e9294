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


def found(path: Path) -> Path:
    """The scenario that a path or a name stands for: the file, if there is one, or the shipped one
    of this name, such as `quick`, `explore/two-vcpus` or `configs/quick.toml`; of two with one name
    the one that lies higher; or the only one whose name begins so, up to a hyphen (`R22`). A path
    that stands for nothing is returned as it is."""
    if path.exists() or path.is_absolute():
        return path
    try:
        root = configs_root()
    except StressError:
        return path
    name = path.relative_to("configs") if path.parts[:1] == ("configs",) else path
    file = name if name.suffix == ".toml" else name.with_name(f"{name.name}.toml")
    if (root / file).is_file():
        return root / file
    if len(file.parts) > 1:
        return path
    places = sorted(root.rglob(file.name), key=lambda place: len(place.parts))
    begun = places or [*root.rglob(f"{path.name}-*.toml")]
    return begun[0] if places or len(begun) == 1 else path
