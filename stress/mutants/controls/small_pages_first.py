"""Invalid roots are zapped page by page before any table goes."""

from mmu.kernels import SmallZapsFirst
from stress.mutants.case import Case, Control

VARIANT = Control(
    name="small-pages-first",
    title="invalid roots are zapped from the bottom up",
    parts=(SmallZapsFirst,),
    origin="8ca983631f3c (6.9) on an older kernel; B34, B35",
    looks_wrong=(
        "The order of the passes is not 1 GiB and then everything: tables stand empty for a while, "
        "and the walk is done several times."
    ),
    right_because=(
        "Nobody maps in an invalid root, so what one pass has removed stays removed; the last pass "
        "takes what is "
        "left. It only bounds the work of one step."
    ),
    tried=(
        Case("explore/obsolete-root"),
        Case("explore/two-deletes"),
        Case("explore/nx-toggle-vs-fetch"),
        Case("quick", ("vm.have_exported_tdp=false",)),
    ),
)
