"""What an oracle is: an observer that knows one family of rules and reports when one is broken."""

from __future__ import annotations

from mmu.kvm import Kvm
from mmu.machine.vm import VirtualMachine
from stress.scenario.types import Limits


class Oracle:
    """Methods named after probe hooks are called as events happen. `rules` are the numbers it can report; `title` says
    what it watches. An oracle keeps its own state thread-safe and never changes the model."""

    rules: tuple[str, ...] = ()
    title = ""

    def __init__(self, vm: VirtualMachine, limits: Limits) -> None:
        self.vm = vm
        self.kvm: Kvm = vm.kvm
