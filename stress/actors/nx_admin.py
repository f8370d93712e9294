"""Who switches the NX huge page mitigation on and off, and the worker that gives huge pages back."""

from __future__ import annotations

from stress.actors.base import Actor, Stage


class NxAdmin(Actor):
    """Writes the module parameter; now and then changes a memory attribute of a range instead."""

    def __init__(self, stage: Stage) -> None:
        super().__init__(stage, "nx-admin")
        config = stage.scenario.actors.nx
        self._dice = stage.dice(self.name)
        self._pause = config.pause_s
        self._attributes = config.attributes_share

    def step(self) -> None:
        """One change of the VM's configuration."""
        vm = self.stage.vm
        if self._dice.random() < self._attributes:
            place = self._dice.choice(self.stage.layout.fixed)
            first = place.gfn + self._dice.randrange(place.pages)
            vm.change_attributes(first, min(place.gfn + place.pages, first + 16))
            self.stage.counts["attribute_changes"].add(1)
        else:
            vm.set_nx_huge_pages(not vm.kvm.nx_huge_pages.value)
        vm.kvm.runtime.sleep(self._dice.random() * self._pause)


class NxRecovery(Actor):
    """kvm-nx-lpage-recovery."""

    def __init__(self, stage: Stage) -> None:
        super().__init__(stage, "nx-recovery")
        self._dice = stage.dice(self.name)
        self._pause = stage.scenario.actors.nx.pause_s

    def step(self) -> None:
        """One turn."""
        recovered = self.stage.vm.recover_nx_huge_pages()
        self.stage.counts["nx_pages_recovered"].add(recovered)
        self.stage.vm.kvm.runtime.sleep(self._dice.random() * self._pause / 2)
