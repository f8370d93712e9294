"""R-numbers: the latent defects of the series as posted (reference 1.11).

`mmu.posted` has those that are model-level, one a file.
"""

from __future__ import annotations

from typing import Final

from attrs import frozen


@frozen
class Defect:
    """A defect's short name, what it is in one line, and why `mmu.posted` does not have it, where
    it has not."""

    name: str
    says: str
    absent: str = ""


DEFECTS: Final = {
    "R1": Defect(
        "double export race", "the check and the list insertion are separate critical sections"
    ),
    "R2": Defect(
        "wrong variable",
        "an allocation check looks at the wrong pointer",
        absent="a slip in C, nothing that a model of the protocol could show",
    ),
    "R3": Defect("publish before init", "the fd is installed before the object is on the list"),
    "R4": Defect(
        "error path double destroy",
        "a failed creation is undone by the file's release and again by hand",
    ),
    "R5": Defect(
        "un-export zaps a live root without flushing",
        "vCPUs keep translations and partial walks into freed memory",
    ),
    "R6": Defect(
        "un-export yields with the flag already clear",
        "a memslot update and new mappings can come in between",
        absent="comes with R5, whose zap yields after the flag is clear; R22 is what it leads to",
    ),
    "R7": Defect(
        "spurious IO fault is failed",
        "a vCPU mapped the page first, and the whole fault group is answered FAILURE",
    ),
    "R8": Defect(
        "stale fault state across retry",
        "a 2 MiB goal level survives the split of the host page",
    ),
    "R9": Defect(
        "MMIO SPTEs survive",
        "after the generation wraps, an ancient one in the exported root matches again",
    ),
    "R10": Defect(
        "NX toggle race",
        "a fault in flight installs an executable huge leaf after the mitigation was switched on",
    ),
    "R11": Defect(
        "empty tables confuse NX recovery",
        "it looks up the slot of a table whose memslot is gone, and warns",
    ),
    "R12": Defect(
        "mm-exit zap has no flush", "the IOTLB reaches freed pages until the HWPT fd is closed"
    ),
    "R13": Defect(
        "unbounded non-yielding zap",
        "the whole address space under mmu_lock(write) and in one RCU section",
        absent=(
            "a property of the seed: every run measures it (M1, M2), and limits.walk_steps makes "
            "it a finding"
        ),
    ),
    "R14": Defect(
        "teardown order",
        "the domain is freed first, and a concurrent flush calls invalidate on the freed domain",
    ),
    "R15": Defect(
        "double put in HWPT alloc error path",
        "the user's TDP FD is released while the user still holds it",
    ),
    "R16": Defect(
        "page tables never shrink",
        "slots that come and go leave their tables in the exported root",
        absent="a property of the seed: every run measures it (M8)",
    ),
    "R17": Defect(
        "IO fault holds slots_lock across GUP",
        "a userfaultfd handler that needs a memslot ioctl deadlocks with it",
    ),
    "R18": Defect(
        "importer interprets raw bits",
        "an MMIO SPTE is a writable leaf to a walker that looks at W alone",
    ),
    "R19": Defect(
        "dirty logging by D bits",
        "neither they nor PML see what a device writes through an already writable SPTE",
    ),
    "R20": Defect(
        "lost update of maxphyaddr",
        "vCPU threads take the minimum without a common lock",
        absent="every vCPU of the model has the same address width",
    ),
    "R21": Defect(
        "invalidate latency under mmu_lock",
        "an IOTLB flush waits for hardware under mmu_lock(write) and two spinlocks",
        absent="a property of the series: every run measures it (M7)",
    ),
    "R22": Defect(
        "the root that changes hands in the gap",
        "un-exported between invalidation and exported zap, it is skipped by both",
    ),
    "R23": Defect(
        "a range flush keeps partial walks",
        "ih=1 claims that no table was freed; masked on the RFC's base, honoured from 6.19 on",
    ),
    "R24": Defect(
        "page requests outlive the domain",
        "a device is detached without draining them, so the worker finds a freed HWPT",
    ),
}
"""Every defect by its number."""


def titled(number: str) -> str:
    """`number` with its name and its line, as variants and listings title it."""
    return f"{number} {DEFECTS[number].name}: {DEFECTS[number].says}"
