"""What an oracle is: an observer that knows one family of rules and reports when one is broken."""

from __future__ import annotations

from mmu.kvm import Kvm
from mmu.machine.vm import VirtualMachine
from stress.scenario.types import Limits


class Oracle:
    """Methods named after probe hooks are called as events happen. `rules` are the numbers it can
    report; `title` says what it watches. An oracle keeps its own state thread-safe and never
    changes the model. `judged` counts, a rule, how often it had something to decide: an oracle that
    never had proves nothing."""

    rules: tuple[str, ...] = ()
    title = ""

    def __init__(self, vm: VirtualMachine, limits: Limits) -> None:
        self.vm = vm
        self.kvm: Kvm = vm.kvm
        self.judged = {
            rule: vm.kvm.runtime.per_thread_counter(f"judged {rule}") for rule in self.rules
        }
