"""`stress trace record`: the ftrace set-up that `check` wants, as a shell script for a user to read
and run as root.

Arguments of probes are given by name (`root->role.word`), which the kernel resolves with its own
BTF; where it cannot, the script falls back to registers, and says so. Source:
Documentation/trace/{ftrace,kprobetrace,fprobetrace}.rst.
"""

from __future__ import annotations

import re
from typing import Final

from attrs import frozen

from stress.trace.names import FUNCTIONS
from stress.trace.parts.flushes import FLUSHES
from stress.trace.parts.roots import ROOTS
from stress.trace.parts.slots import SLOTS
from stress.trace.parts.sptes import FROZEN, TABLES, TRANSITIONS
from stress.trace.parts.statistics import STATISTICS
from stress.trace.parts.vcpus import OBSOLETE
from stress.trace.record_script import TEMPLATE

EVENTS: Final = (
    "kvmmmu",
    "kvm/kvm_entry",
    "kvm/kvm_exit",
    "kvm/kvm_page_fault",
    "kvm/kvm_userspace_exit",
    "kvm/kvm_unmap_hva_range",
    "kvm/kvm_smm_transition",
)
"""Events of level 1."""

LEVELS: Final = {
    1: "tracepoints only: what changed in the page tables",
    2: (
        "and function entries, with the probes that need registers only: who did it, and whether "
        "it was flushed"
    ),
    3: "and probes with arguments, with page statistics: roots, slots, references, requests",
}


@frozen
class ProbeSpec:
    """A probe: its event name, its function, and its arguments: the definitions are tried in turn,
    the most telling first. Those that name members need the kernel's BTF, those with registers do
    not, and those that begin with `@VERSION` are for that kernel only, because they say where in
    its structures a member lies; without any the probe says that the function was called."""

    name: str
    function: str
    tries: tuple[str, ...] = ()
    level: int = 3

    @property
    def definition(self) -> str:
        """`p` for an entry, `r` for a return."""
        return (
            f"{'r' if self.name.endswith('_ret') else 'p'}:tdp_stress/{self.name} {self.function}"
        )


def _entry(name: str, function: str, *tries: str, level: int = 3) -> tuple[ProbeSpec, ...]:
    return (ProbeSpec(name, function, tries, level),)


def _both(
    name: str, function: str, *tries: str, ret: str = "", level: int = 3
) -> tuple[ProbeSpec, ...]:
    """A probe on the entry and one on the return."""
    returned = (ret,) if ret else ()
    return (
        ProbeSpec(name, function, tries, level),
        ProbeSpec(f"{name}_ret", function, returned, level),
    )


KVM: Final = "kvm=kvm:x64"
BY_REGISTER: Final = "kvm=%di:x64"
VCPU: Final = "kvm=vcpu->kvm:x64 vcpu=vcpu->vcpu_id:s32"
RET: Final = "ret=$retval:s32"
FLUSH: Final = "flush=$retval:u8"
GEN: Final = "gen=kvm->arch.mmu_valid_gen:u8"
SEQ: Final = "inv_seq=kvm->mmu_invalidate_seq:u64 inv_prog=kvm->mmu_invalidate_in_progress:u64"
PAGES: Final = f"{KVM} tdp_pages=kvm->arch.tdp_mmu_pages.counter:u64"
SLOT: Final = " ".join(
    f"{which}_{short}={which}->{member}:{kind}"
    for which in ("old", "new")
    for short, member, kind in (
        ("id", "id", "s16"),
        ("gfn", "base_gfn", "x64"),
        ("n", "npages", "x64"),
        ("fl", "flags", "x32"),
        ("hva", "userspace_addr", "x64"),
    )
)
OLDER_SLOT: Final = " ".join(
    f"{which}_{short}=+{at:#x}({register}):x64"
    for which, register in (("old", "%si"), ("new", "%dx"))
    for short, at in (("gfn", 0xB0), ("n", 0xB8))
)
"""6.1 cannot give arguments by name; base_gfn and npages of struct kvm_memory_slot lie here. What a
slot that does not exist would hold is printed as `(fault)`."""
COUNT: Final = "ref=root->tdp_mmu_root_count.refs.counter:u32 role=root->role.word:x32"
OLDER_COUNT: Final = "ref=root->tdp_mmu_root_count.counter:u32 role=root->role.word:x32"
"""Until 6.0 the count was a refcount_t of another shape."""
OLDER_PAGE: Final = "spt=+0x30(%si):x64 ref=+0x40(%si):u32 role=+0x24(%si):x32"
"""Of struct kvm_mmu_page in 6.1."""
ROOT: Final = "root=root:x64 spt=root->spt:x64"
RANGE: Final = "start=start:x64 end=end:x64"
HOST_RANGE: Final = "start=range->start:x64 end=range->end:x64"
FAULT: Final = "gfn=fault->gfn:x64"
GFNS: Final = "start=range->start:x64 end=range->end:x64 slot=range->slot->id:s16"

_SLOTS: Final = (
    *_both(
        "set_memslot",
        "kvm_set_memslot",
        f"{KVM} change=change:s32 {SLOT}",
        f"@6.1 {BY_REGISTER} change=%cx:s32 {OLDER_SLOT}",
        f"{BY_REGISTER} change=%cx:s32",
        ret=RET,
        level=2,
    ),
    *_both(
        "swap_memslots",
        "kvm_swap_active_memslots",
        f"{KVM} as_id=as_id:s32",
        f"{BY_REGISTER} as_id=%si:s32",
    ),
    *_entry(
        "memslots_updated",
        "kvm_arch_memslots_updated",
        f"{KVM} gen=gen:x64",
        f"{BY_REGISTER} gen=%si:x64",
        level=2,
    ),
    *_both(
        "flush_shadow_memslot",
        "kvm_arch_flush_shadow_memslot",
        f"{KVM} id=slot->id:s16 gfn=slot->base_gfn:x64 n=slot->npages:x64",
        BY_REGISTER,
    ),
)
_ROOTS: Final = (
    *_both("zap_all_fast", "kvm_mmu_zap_all_fast", f"{PAGES} {GEN} {SEQ}", PAGES, BY_REGISTER),
    *_both(
        "invalidate_all_roots",
        "kvm_tdp_mmu_invalidate_all_roots",
        f"{KVM} {GEN} {SEQ}",
        BY_REGISTER,
    ),
    *_both("invalidate_roots", "kvm_tdp_mmu_invalidate_roots", f"{KVM} {GEN} {SEQ}", BY_REGISTER),
    *_both(
        "zap_invalidated_roots",
        "kvm_tdp_mmu_zap_invalidated_roots",
        f"{PAGES} {GEN}",
        BY_REGISTER,
    ),
    *_both(
        "alloc_root",
        "kvm_tdp_mmu_alloc_root",
        f"{VCPU} role=vcpu->arch.mmu->root_role.word:x32",
        ret=RET,
    ),
    *_both(
        "get_vcpu_root",
        "kvm_tdp_mmu_get_vcpu_root_hpa",
        f"{VCPU} role=vcpu->arch.mmu->root_role.word:x32",
        ret="ret=$retval:x64",
    ),
    *_both(
        "next_root",
        "tdp_mmu_next_root",
        "prev=prev_root:x64 only_valid=only_valid:u8",
        "prev=prev_root:x64 types=types:x32",
        "prev=%si:x64",
        ret="root=$retval:x64",
    ),
    *_entry(
        "put_root",
        "kvm_tdp_mmu_put_root",
        f"{KVM} {ROOT} {COUNT}",
        f"{KVM} {ROOT} {OLDER_COUNT}",
        f"@6.1 {BY_REGISTER} root=%si:x64 {OLDER_PAGE}",
        f"{BY_REGISTER} root=%si:x64",
    ),
    *_both(
        "zap_root",
        "tdp_mmu_zap_root",
        f"{KVM} {ROOT} {COUNT} shared=shared:u8",
        f"{BY_REGISTER} root=%si:x64",
    ),
    *_both(
        "__zap_root",
        "__tdp_mmu_zap_root",
        f"{KVM} root=root:x64 shared=shared:u8 zap_level=zap_level:s32",
        f"{BY_REGISTER} root=%si:x64",
    ),
    *_entry("uninit_tdp", "kvm_mmu_uninit_tdp_mmu", PAGES, BY_REGISTER),
    *_entry("init_vm", "kvm_mmu_init_vm", KVM, BY_REGISTER, level=2),
    *_entry("free_sp_rcu", "tdp_mmu_free_sp_rcu_callback", "head=head:x64", "head=%di:x64"),
)
_RANGES: Final = (
    *_both(
        "zap_leafs",
        "tdp_mmu_zap_leafs",
        f"{KVM} root=root:x64 {RANGE} can_yield=can_yield:u8 flush=flush:u8",
        f"{BY_REGISTER} root=%si:x64",
        ret=FLUSH,
    ),
    *_both(
        "unmap_gfn_range",
        "kvm_tdp_mmu_unmap_gfn_range",
        f"{KVM} {GFNS} flush=flush:u8",
        BY_REGISTER,
        ret=FLUSH,
    ),
    *_both(
        "mn_start",
        "kvm_mmu_notifier_invalidate_range_start",
        HOST_RANGE,
        ret=RET,
        level=2,
    ),
    *_both("mn_end", "kvm_mmu_notifier_invalidate_range_end", HOST_RANGE),
    *_entry(
        "inv_end",
        "kvm_mmu_invalidate_end",
        f"{KVM} seq=kvm->mmu_invalidate_seq:u64 prog=kvm->mmu_invalidate_in_progress:u64",
    ),
    *_both(
        "wrprot_slot",
        "kvm_tdp_mmu_wrprot_slot",
        f"{KVM} id=slot->id:s16 min_level=min_level:s32",
        ret="changed=$retval:u8",
    ),
    *_both(
        "wrprot_range",
        "wrprot_gfn_range",
        f"root=root:x64 {RANGE} min_level=min_level:s32",
        ret="changed=$retval:u8",
    ),
    *_entry(
        "clear_dirty_pt",
        "kvm_tdp_mmu_clear_dirty_pt_masked",
        "gfn=gfn:x64 mask=mask:x64 wrprot=wrprot:u8",
    ),
    *_entry("split", "kvm_tdp_mmu_try_split_huge_pages", f"{RANGE} shared=shared:u8"),
    *_entry("zap_all", "kvm_tdp_mmu_zap_all", KVM, BY_REGISTER, level=2),
)
_FAULTS: Final = (
    *_both("tdp_page_fault", "kvm_tdp_page_fault", VCPU, ret=RET),
    *_both("direct_pf", "direct_page_fault", VCPU, ret=RET),
    *_both(
        "stale",
        "is_page_fault_stale",
        f"{VCPU} {FAULT} root=vcpu->arch.mmu->root.hpa:x64 fault_seq=fault->mmu_seq:u64 "
        "seq=vcpu->kvm->mmu_invalidate_seq:u64 prog=vcpu->kvm->mmu_invalidate_in_progress:u64 "
        "req=vcpu->requests:x64",
        f"{VCPU} {FAULT} root=vcpu->arch.mmu->root.hpa:x64",
        ret="ret=$retval:u8",
    ),
    *_both(
        "map",
        "kvm_tdp_mmu_map",
        f"{VCPU} {FAULT} pfn=fault->pfn:x64 write=fault->write:u8 exec=fault->exec:u8 "
        "map_w=fault->map_writable:u8 prefetch=fault->prefetch:u8 goal=fault->goal_level:s32 "
        "mmu_seq=fault->mmu_seq:u64 slot=fault->slot->id:s16",
        f"{VCPU} {FAULT} pfn=fault->pfn:x64",
        ret=RET,
        level=2,
    ),
)
_VCPUS: Final = (
    *_both(
        "make_all_req",
        "kvm_make_all_cpus_request",
        f"{KVM} req=req:x32",
        f"{BY_REGISTER} req=%si:x32",
        ret="called=$retval:u8",
    ),
    *_both("mmu_load", "kvm_mmu_load", VCPU, ret=RET, level=2),
    *_entry("load_pgd", "svm_load_mmu_pgd", f"{VCPU} root=root_hpa:x64", "root=%si:x64"),
    *_entry("load_ept", "vmx_load_mmu_pgd", f"{VCPU} root=root_hpa:x64", "root=%si:x64"),
    *_entry(
        "mmu_free_roots",
        "kvm_mmu_free_roots",
        "roots=roots_to_free:x64 root=mmu->root.hpa:x64",
        "roots=%dx:x64",
    ),
    *_entry("free_obsolete", "kvm_mmu_free_obsolete_roots", VCPU),
    *_entry("mmu_unload", "kvm_mmu_unload", f"{VCPU} root=vcpu->arch.mmu->root.hpa:x64", VCPU),
    *_entry("svc_tlb", "kvm_service_local_tlb_flush_requests", VCPU),
    *_entry("flush_all", "svm_flush_tlb_all", VCPU),
    *_entry("flush_all_ept", "vmx_flush_tlb_all", VCPU),
    *_entry(
        "flush_remote_range",
        "kvm_flush_remote_tlbs_range",
        "gfn=gfn:x64 n=nr_pages:x64",
        "gfn=start_gfn:x64 n=nr_pages:x64",
        "gfn=%si:x64 n=%dx:x64",
        level=2,
    ),
)

PROBES: Final = (*_SLOTS, *_ROOTS, *_RANGES, *_FAULTS, *_VCPUS)
"""What `check` and `conform` look for. A function that a kernel does not have, or has inlined, is
left out with a note."""

MORE_FUNCTIONS: Final = (
    "__cond_resched_rwlock_read",
    "__cond_resched_rwlock_write",
    "kvm_faultin_pfn",
    "kvm_mmu_faultin_pfn",
    "kvm_mmu_reset_context",
    "kvm_tdp_mmu_recover_huge_pages",
    "kvm_tdp_mmu_zap_collapsible_sptes",
    "synchronize_srcu_expedited",
)
"""Functions whose entries `conform` looks at, beside those that `check` does."""

CHECKS: Final = (SLOTS, TRANSITIONS, FROZEN, FLUSHES, ROOTS, TABLES, STATISTICS, OBSOLETE)
_TRACEPOINTS: Final = frozenset(
    {
        "kvm_tdp_mmu_spte_changed", "kvm_mmu_get_page", "kvm_mmu_prepare_zap_page",
        "kvm_mmu_set_spte", "kvm_mmu_spte_requested", "kvm_mmu_zap_all_fast", "fast_page_fault",
        "mark_mmio_spte", "check_mmio_spte", "kvm_entry", "kvm_exit", "kvm_userspace_exit",
        "kvm_page_fault", "kvm_unmap_hva_range",
    }
)  # fmt: skip
_ARGUMENT: Final = re.compile(r"(\w+)=")


def recorded(level: int) -> set[str]:
    """What a recording of this level holds: canonical names of events, and `name:argument` of the
    probes."""
    have = set(_TRACEPOINTS)
    if level >= 2:
        have |= {f"{name}()" for name in FUNCTIONS.values()}
    for probe in PROBES:
        canonical = FUNCTIONS.get(probe.function)
        if canonical and probe.level <= level:
            name = f"{canonical}_ret" if probe.name.endswith("_ret") else canonical
            arguments = {found for each in probe.tries for found in _ARGUMENT.findall(each)}
            have |= {name, *(f"{name}:{argument}" for argument in arguments)}
    return have | ({"statistics"} if level >= 3 else set())


def provable(level: int) -> list[str]:
    """The checks of which something can be proved at this level."""
    have = recorded(level)
    return [check.name for check in CHECKS if check.judges(have)]


def explanation() -> str:
    """What each level records, and what `check` can judge with it."""
    lines = []
    for level, what in LEVELS.items():
        lines += [f"level {level}: {what}", f"  judges: {', '.join(provable(level))}"]
        missing = [check for check in CHECKS if check.name not in provable(level)]
        have = recorded(level)
        lines += [f"  not {check.name}: needs {check.wants(have)}" for check in missing]
    lines.append(
        "Every level needs a recording that begins before the VM does, or it can only judge what "
        "it has seen the beginning of."
    )
    return "\n".join(lines) + "\n"


def script(level: int, buffer_mb: int, kernel: str = "") -> str:
    """The whole script."""
    probes = [_probe_line(probe) for probe in PROBES if probe.level <= level]
    functions = " ".join(sorted([*FUNCTIONS, *MORE_FUNCTIONS])) if level >= 2 else ""
    made_for = f" (for kernel {kernel})" if kernel else ""
    return TEMPLATE.format(
        level=level,
        made_for=made_for,
        what=LEVELS[level],
        judges=", ".join(provable(level)),
        buffer_kb=buffer_mb * 1024,
        events=" ".join(EVENTS),
        functions=functions,
        probes="\n".join(probes) or "    : # none at this level",
        statistics="1" if level >= 3 else "0",
    )


def _probe_line(probe: ProbeSpec) -> str:
    """One call of the script's `probe`: the definitions in the order in which they are tried."""
    tries = [
        f"{each.split(' ', 1)[0]} {probe.definition} {each.split(' ', 1)[1]}"
        if each.startswith("@")
        else f"{probe.definition} {each}"
        for each in (*probe.tries, "")
    ]
    quoted = " \\\n        ".join(f"'{definition.rstrip()}'" for definition in tries)
    return f"    probe {quoted}"
