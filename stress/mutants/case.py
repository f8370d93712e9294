"""What a mutant is: a variant that breaks one rule, with the smallest scenarios that can show
it."""

from __future__ import annotations

from typing import Literal

from attrs import field, frozen

from mmu import Variant

__all__ = ["Case", "Control", "Mutant"]

Confidence = Literal["V", "Vt", "M", "A"]
"""The reference's mark: verified, title verified, from memory, by analysis."""


@frozen
class Case:
    """A scenario file below `configs/`, without its suffix, and keys that are set on top
    (`vm.vcpus=1`, as with --set).

    `strategy` chooses the schedules of an exploration; empty: the scenario's own, which is a
    portfolio.
    """

    scenario: str
    settings: tuple[str, ...] = ()
    strategy: str = ""


@frozen(kw_only=True)
class Mutant(Variant):
    """A variant that must die: `expects` names the rules (or codes of checks) of which at least one
    must fire.

    `controlled` is where the controlled engine finds it; `threads` where real threads do, or None
    with the reason in `threads_cannot`. `confidence` is the reference's mark for `origin`. `tags`
    are words to choose by.
    """

    confidence: Confidence
    tags: tuple[str, ...]
    controlled: Case
    threads: Case | None
    threads_cannot: str = ""

    def __attrs_post_init__(self) -> None:
        """A mutant without a kill to expect, or that real threads miss for no reason, proves
        nothing."""
        if not self.expects:
            raise ValueError(f"{self.name}: expects no rule to fire")
        if (self.threads is None) != bool(self.threads_cannot):
            raise ValueError(
                f"{self.name}: exactly one of threads and threads_cannot must be given"
            )


@frozen(kw_only=True)
class Control(Variant):
    """A control: a variant that looks wrong and is right, on which nothing may fire.

    `looks_wrong` is what a reader would object to, `right_because` why it is allowed; `tried` are
    the scenarios on which it must stay silent, on both engines.
    """

    looks_wrong: str
    right_because: str
    tried: tuple[Case, ...] = field()

    @tried.validator
    def _not_empty(self, _: object, value: tuple[Case, ...]) -> None:
        if not value:
            raise ValueError(f"{self.name}: is tried on nothing")
