"""The parts that the VM makes while it runs, and those inside `Kvm`: what a variant of them
overrides takes effect, and must have the signature of the original."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import pytest

from mmu.export.importer import ExportedTdp
from mmu.export.republish import REPUBLISH
from mmu.export.tdp_fd import TdpFd
from mmu.kernels import LookBeforeLocking
from mmu.kvm import Invalidation
from mmu.memory.tlb import WHOLE, TranslationCache
from mmu.paging.nxlist import PossibleNxHugePages
from mmu.paging.table import ShadowPage
from mmu.tdp.fault import RetPf
from mmu.variant import Variant
from tests.model import Machine, w, x
from tests.unit.conftest import MakeMachine

PARTS = (PossibleNxHugePages, Invalidation, TranslationCache, ExportedTdp, TdpFd)


def variant(*parts: type) -> Variant:
    """A variant without a story."""
    return Variant(parts[0].__name__.lower(), "", parts)


def methods(part: type) -> dict[str, Callable[..., Any]]:
    """The public methods of a part."""
    return {n: f for n, f in vars(part).items() if inspect.isfunction(f) and not n.startswith("_")}


def spy_on(part: type, heard: set[str]) -> type:
    """A subclass that notes the name of every public method that is called, and calls it."""

    def noting(name: str, original: Callable[..., Any]) -> Callable[..., Any]:
        def noted(self: object, *args: Any, **kwargs: Any) -> Any:
            heard.add(name)
            return original(self, *args, **kwargs)

        return noted

    return type("Spy", (part,), {name: noting(name, f) for name, f in methods(part).items()})


def use_everything(machine: Machine) -> None:
    """A fetch under the NX mitigation, recovery with and without dirty logging, an export with a
    device that faults, an invalidation, a delete, and the end."""
    region = machine.add_slot(0, 32, max_level=2)
    vcpu = machine.vcpu()
    machine.run(vcpu, x(5))
    machine.vm.recover_nx_huge_pages()
    machine.run(vcpu, x(5))
    machine.log_dirty_pages()
    machine.vm.recover_nx_huge_pages()
    fd = machine.export()
    device, hwpt = machine.attach(fd)
    assert hwpt.io_fault(6, write=True)
    device.transact(6, write=True)
    machine.add_slot(32, 8, slot=1, max_level=2)
    assert hwpt.io_fault(36, write=True)
    device.transact(36, write=True)
    machine.vm.tlb.flush_range("test", 6, 31)
    machine.discard(region, 0, 4)
    machine.run(vcpu, w(1))
    machine.delete_slot()
    hwpt.destroy()
    machine._hwpts.clear()
    machine.vm.close_tdp_fd(fd)


@pytest.mark.parametrize("part", PARTS)
def test_the_vm_calls_every_method_of_the_part_that_a_variant_gives_it(
    make_machine: MakeMachine, part: type
) -> None:
    heard: set[str] = set()
    others = [variant(LookBeforeLocking), REPUBLISH]
    machine = make_machine(
        variants=[*others, variant(spy_on(part, heard))],
        huge_2m=8,
        nx_huge_pages=True,
        nx_recovery_ratio=1,
    )
    use_everything(machine)
    assert heard == set(methods(part))


def test_a_list_that_forgets_leaves_nothing_to_recover(make_machine: MakeMachine) -> None:
    class Forgetful(PossibleNxHugePages):
        def track(self, sp: ShadowPage) -> None:
            forgotten.append(sp.gfn)

    forgotten: list[int] = []
    machine = make_machine(variants=[variant(Forgetful)], huge_2m=8, nx_huge_pages=True)
    machine.add_slot(0, 32, max_level=2)
    machine.run(machine.vcpu(), x(5))
    assert forgotten == [4]
    assert machine.kvm.possible_nx_huge_pages.pages() == ()


@pytest.mark.parametrize("answer", [True, False])
def test_retry_decides_whether_a_fault_is_stale(make_machine: MakeMachine, answer: bool) -> None:
    """The model makes the comparison in line, but not a variant's."""

    class Decided(Invalidation):
        def retry(self, seq: int, hva: int) -> bool:
            return answer

    machine = make_machine(variants=[variant(Decided)])
    region = machine.add_slot(0, 8)
    with machine.invalidating(region):
        result = machine.fault(machine.vcpu(), 1)
    assert result is (RetPf.RETRY if answer else RetPf.FIXED)


def test_an_invalidation_that_does_not_begin_stops_no_fault(make_machine: MakeMachine) -> None:
    class Silent(Invalidation):
        def begin(self, start: int, end: int) -> None:
            self.in_progress.fetch_add(1)

    machine = make_machine(variants=[variant(Silent)])
    region = machine.add_slot(0, 8)
    with machine.invalidating(region):
        assert machine.fault(machine.vcpu(), 1) is RetPf.FIXED


class KeepsRanges(TranslationCache):
    """Forgets nothing when told of a range."""

    def flush_range(self, gfn: int, pages: int, leaves_only: bool = False) -> None:
        if pages == WHOLE:
            super().flush_range(gfn, pages, leaves_only)


def test_vcpus_and_devices_have_the_variants_translation_cache(make_machine: MakeMachine) -> None:
    machine = make_machine(variants=[variant(KeepsRanges)])
    machine.add_slot(0, 8)
    device, hwpt = machine.attach(machine.export())
    hwpt.io_fault(3, write=True)
    device.transact(3, write=True)
    machine.vm.tlb.flush_range("test", 3, 1)
    assert 3 in device.iotlb.entries
    machine.vm.tlb.flush("test")
    assert device.iotlb.entries == {}
    assert type(machine.vcpu().tlb) is KeepsRanges


def test_two_variants_of_the_translation_cache_compose(make_machine: MakeMachine) -> None:
    class Counting(TranslationCache):
        def flush(self) -> None:
            flushed.append(len(self.entries))
            super().flush()

    flushed: list[int] = []
    machine = make_machine(variants=[variant(KeepsRanges), variant(Counting)])
    machine.add_slot(0, 8)
    vcpu = machine.vcpu()
    machine.run(vcpu, w(1), w(2))
    vcpu.tlb.flush_range(1, 1)
    vcpu.flush_local()
    assert flushed[-1] == 2, "the range was kept, and the whole was counted"


def test_an_export_that_does_not_notify_leaves_the_importer_untold(
    make_machine: MakeMachine,
) -> None:
    class Silent(ExportedTdp):
        def notify(self, gfn: int, pages: int) -> None:
            untold.append((gfn, pages))

    untold: list[tuple[int, int]] = []
    machine = make_machine(variants=[variant(Silent)])
    machine.add_slot(0, 8)
    device, hwpt = machine.attach(machine.export())
    hwpt.io_fault(3, write=True)
    device.transact(3, write=True)
    machine.vm.tlb.flush("test")
    assert untold[-1] == (0, WHOLE)
    assert 3 in device.iotlb.entries


def test_a_tdp_fd_that_refuses_faults_answers_for_the_model(make_machine: MakeMachine) -> None:
    class Refusing(TdpFd):
        def fault(self, gfn: int, write: bool) -> bool:
            return gfn > 3 and super().fault(gfn, write)

    machine = make_machine(variants=[variant(Refusing)])
    machine.add_slot(0, 8)
    _, hwpt = machine.attach(machine.export())
    assert [hwpt.io_fault(gfn, write=True) for gfn in (3, 4)] == [False, True]
    assert sorted(machine.leaves(machine.root())) == [4]


@pytest.mark.parametrize("part", PARTS)
def test_an_override_that_takes_too_much_is_refused(make_machine: MakeMachine, part: type) -> None:
    name = next(iter(methods(part)))
    wrong = type("Wrong", (part,), {name: lambda self, one, two, three, four: None})
    with pytest.raises(
        TypeError, match=rf"Wrong\.{name}\(.*must take what {part.__name__}\.{name}"
    ):
        make_machine(variants=[variant(wrong)])
