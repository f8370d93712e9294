"""What an oracle is: an instrument that knows one family of rules and reports each violation."""

from __future__ import annotations

from mmu.kvm import Kvm
from mmu.machine.vm import VirtualMachine
from mmu.probe import Instrument
from stress.scenario.types import Limits


class Oracle(Instrument):
    """An instrument that judges events as they happen.

    `rules` are the numbers it can report; `title` says what it watches. `judged` counts, for each
    rule, how often the oracle had something to decide: one that never had proves nothing. An oracle
    keeps its own state thread-safe and never changes the model.
    """

    rules: tuple[str, ...] = ()
    title = ""

    def __init__(self, vm: VirtualMachine, limits: Limits) -> None:  # noqa: ARG002 - for subclasses
        self.vm = vm
        self.kvm: Kvm = vm.kvm
        self.judged = {
            rule: vm.kvm.runtime.per_thread_counter(f"judged {rule}") for rule in self.rules
        }
