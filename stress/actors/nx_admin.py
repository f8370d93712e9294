"""Who switches the NX huge page mitigation on and off, and the worker that gives huge pages
back."""

from __future__ import annotations

from collections.abc import Iterator

from stress.actors.base import Actor, Stage
from stress.scenario.operations import Op

LONGEST = 16
"""Guest frames of one attribute change, at most."""


class NxAdmin(Actor):
    """Writes the module parameter; now and then changes a memory attribute of a range instead."""

    def __init__(self, stage: Stage) -> None:
        super().__init__(stage, "nx-admin")
        config = stage.scenario.actors.nx
        self._dice = stage.dice(self.name)
        self._pause = config.pause_s
        self._attributes = config.attributes_share
        self.verbs |= {"toggle": self.toggle, "attributes": self.attributes}

    def choose(self) -> Iterator[Op]:
        """One change of the VM's configuration."""
        if self._dice.random() < self._attributes:
            place = self._dice.choice(self.stage.layout.fixed)
            first = place.gfn + self._dice.randrange(place.pages)
            yield Op("attributes", (first, min(place.gfn + place.pages, first + LONGEST)))
        else:
            yield Op("toggle")

    def rest(self) -> None:
        """A random pause."""
        self.stage.vm.kvm.runtime.sleep(self._dice.random() * self._pause)

    def toggle(self) -> None:
        """Switch nx_huge_pages over."""
        vm = self.stage.vm
        vm.set_nx_huge_pages(not vm.kvm.nx_huge_pages.value)

    def attributes(self, first: int, last: int) -> None:
        """Change an attribute of guest frames [first, last)."""
        self.stage.vm.change_attributes(first, last)
        self.stage.counts["attribute_changes"].add(1)


class NxRecovery(Actor):
    """kvm-nx-lpage-recovery."""

    def __init__(self, stage: Stage) -> None:
        super().__init__(stage, "nx-recovery")
        self._dice = stage.dice(self.name)
        self._pause = stage.scenario.actors.nx.pause_s
        self.verbs |= {"recover": self.recover}

    def choose(self) -> Iterator[Op]:
        """One turn."""
        yield Op("recover")

    def rest(self) -> None:
        """A random pause."""
        self.stage.vm.kvm.runtime.sleep(self._dice.random() * self._pause / 2)

    def recover(self) -> None:
        """Give back what a turn of the worker gives back."""
        recovered = self.stage.vm.recover_nx_huge_pages()
        self.stage.counts["nx_pages_recovered"].add(recovered)
