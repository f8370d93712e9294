"""B-numbers: upstream bugs of the TDP MMU, or the rules that they broke (reference 4).

Numbers that are missing were given to bugs outside of the model, and are not used again.
"""

from __future__ import annotations

from typing import Final

from attrs import frozen


@frozen
class Bug:
    """What went wrong, in one line; the upstream commits, fixes unless said otherwise; and, where
    no variant of this project re-creates it, why not."""

    says: str
    commits: tuple[str, ...] = ()
    absent: str = ""


BUGS: Final = {
    "B01": Bug(
        "a root iterator dropped the last reference without freeing the root", ("a889ea54b3da",)
    ),
    "B02": Bug(
        "a flush pending from one root was forgotten when the next root's zap yielded",
        ("a835429cda91",),
    ),
    "B03": Bug(
        "NX recovery ignored that its zap needed a flush",
        ("048f49809c52",),
    ),
    "B05": Bug("NX recovery's zap could yield while its caller owed a flush", ("33a3164161fc",)),
    "B06": Bug(
        "an SPTE zapped under the read lock was refilled before its flush", ("08f07c800e9d",)
    ),
    "B07": Bug(
        "a walk could yield again before it had done anything",
        ("ed5e484b79e8", "e28a436ca4f6", "1af4a96025b3"),
    ),
    "B08": Bug("a truncated counter skipped a flush", ("88bf56d04bc3",)),
    "B09": Bug(
        "a range flush was given an end instead of a count", ("2822da446640", "bc3b3c1002ea")
    ),
    "B10": Bug(
        "the flush after a table's removal started at the table's last child",
        ("574c3c55e969",),
        absent="no variant yet: the flush of a removed table covers the table's whole range",
    ),
    "B11": Bug(
        "a leaf-only zap overwrote the flush owed by an earlier root",
        ("cf3e26427c08", "873dd122172f", "f47e5bbbc92f"),
    ),
    "B13": Bug("inherited flush state caused flushes not needed", ("4b85c921cd39", "8ed716ca7dc9")),
    "B14": Bug(
        "an entry stayed frozen while its whole subtree was torn down",
        ("aca48556c592",),
        absent="a cost; the 6.12 kernel without the series has the fix (FlushBeforeBookkeeping)",
    ),
    "B15": Bug("enabling the dirty log flushed only if it had changed an SPTE", ("b64d740ea7dd",)),
    "B16": Bug("an iterator skipped the entry at its goal after a yield", ("3a0f64de479c",)),
    "B17": Bug("a notifier yielded inside a walk that pinned no root", ("7533377215b6",)),
    "B18": Bug(
        "a notifier skipped invalid roots, whose zap went on using the frames",
        ("d62007edf01f",),
        absent="no variant yet: notifiers walk all roots",
    ),
    "B19": Bug("readers took references to invalid roots", ("614f6970aa70", "7c554d8e51a9")),
    "B20": Bug("a plain walk of the roots was allowed under the read lock", ("226b8c8f85e4",)),
    "B21": Bug(
        "a root's reference was gifted to a work item: queued twice, or run too late",
        ("22b94c4b63eb", "efd995dae5eb", "a1a39128faff"),
    ),
    "B22": Bug(
        "asynchronous zapping took all CPUs; an invalid root must be zapped only once",
        ("0df9dab891ff",),
    ),
    "B23": Bug("the last vCPU's unload destroyed every table", ("edbdb43fc96b", "01b31714bd90")),
    "B25": Bug("a vCPU was freed while its other MMU held a root", ("f7e570780efc",)),
    "B26": Bug("an obsolete previous root was kept", ("cf4a8693d97a", "527d5cd7eece")),
    "B27": Bug(
        "zapping any root made all vCPUs drop all roots",
        ("527d5cd7eece",),
        absent="a cost, of shadow pages' roots, which the model does not have",
    ),
    "B28": Bug(
        "the lock mode was derived from a role that had been cleared",
        ("1bc26cb90902", "576a15de8d29"),
    ),
    "B29": Bug("a VM outlived the module that owns its code", ("5f6de5cbebee",)),
    "B30": Bug("NX recovery looked a page's slot up in the wrong address space", ("817fa998362d",)),
    "B31": Bug("page tables were freed without a grace period", ("7cca2d0b7e7d",)),
    "B32": Bug(
        "SPTE pointers were used outside of the RCU accessors", ("14f6fec2e8e0", "70fb3e41a97a")
    ),
    "B33": Bug("RCU was held across all roots", ("a151aceca1e4",)),
    "B34": Bug("one recursive removal of a root's entry stalled RCU", ("1b6043e8e584",)),
    "B35": Bug("zapping without stepping down made each step a huge removal", ("0103098fb4f1",)),
    "B36": Bug("a fault mapped in a root that was invalidated meanwhile", ("a955cad84cda",)),
    "B37": Bug("a fault looked at a root without a shadow page", ("18c841e1f411",)),
    "B38": Bug("a truncated snapshot of mmu_invalidate_seq never matched again", ("ba6e3fe25543",)),
    "B39": Bug(
        "mmu_invalidate_seq was read after the page had been looked up",
        absent="no variant yet: FaultHandler.take_seq() comes first, and P1 stands between the two",
    ),
    "B40": Bug("a helper that needs the write lock ran under the read lock", ("47b0c2e4c220",)),
    "B41": Bug("a leaf was installed over a frozen entry", ("f5d16bb9be68",)),
    "B42": Bug(
        "a leaf was installed at the level where the walk ended",
        ("80a3e4ae962d", "63d28a25e04c"),
        absent="no variant yet: FaultHandler.link_child() gives up at a frozen entry",
    ),
    "B43": Bug("a table was linked at an unexpected level", ("50a9ac25985c",)),
    "B46": Bug(
        "a page was put on its list after it had become visible", ("d25ceb926436", "21a36ac6b6c7")
    ),
    "B47": Bug("an SPTE was made for an entry that was frozen", ("58298b068137",)),
    "B48": Bug("faults starved a long invalidation", ("d02c357e5bfa",)),
    "B49": Bug("every invalidation made every fault retry", ("4a42d848db95",)),
    "B50": Bug(
        "a yielding zap of a range was not announced, or with the wrong range",
        ("edb298c663fc", "6d3085e4d89a"),
    ),
    "B51": Bug("a range was zapped under the read lock", ("5a324c24b638",)),
    "B52": Bug(
        "the prefault ioctl mapped without a live root",
        ("28cec7f08b8b",),
        absent="the model has no KVM_PRE_FAULT_MEMORY (D11)",
    ),
    "B53": Bug(
        "a fault on an INVALID slot retried inside one SRCU section, which the update waits for",
        ("3ccbf6f47098",),
        absent="no variant yet: between two tries a vCPU is in the guest, outside of SRCU",
    ),
    "B54": Bug("a huge page was installed while attributes changed", ("9129633d568e",)),
    "B55": Bug(
        "MMIO generations aliased, were published early, or cached while in flux",
        ("34c0f6f2695a", "152482580a1b", "e1359e2beb8b", "ddfd1730fd82", "ee3d1570b586"),
    ),
    "B56": Bug("a plain store overwrote a D bit that hardware had just set", ("ba3a6120a4e7",)),
    "B57": Bug("the test of volatile SPTEs was wrong", ("54eb3ef56f36", "706c9c55e5a3")),
    "B58": Bug("a lost compare-exchange was retried without looking again", ("3354ef5a592d",)),
    "B59": Bug(
        "write protection for the dirty log was undone without marking the page dirty",
        absent="no variant yet: FaultHandler.fast_pf_fix_direct_spte() marks every page it makes "
        "writable",
    ),
    "B60": Bug(
        "a mask of dirtied pages was not cleared on an early exit",
        absent="bookkeeping of the kernel's loop over mask words, which the model has as sets",
    ),
    "B61": Bug("writes of nested guests were missing from the dirty log", ("2673dfb591a3",)),
    "B62": Bug("the fast page fault must not make a huge SPTE writable while the slot logs"),
    "B63": Bug("the ABA case of the fast page fault, harmless in a TDP MMU"),
    "B64": Bug("memslots changed between range_start and range_end", ("52ac8b358b0c",)),
    "B65": Bug(
        "change_pte mapped a page for an INVALID slot",
        ("2230f9e1171a",),
        absent="the model has no change_pte (D17)",
    ),
    "B66": Bug("notifiers skipped INVALID slots"),
    "B67": Bug(
        "a slot's arch data changed while slots_arch_lock was dropped, and was lost",
        ("bda44d844758",),
        absent="the model's slots have no arch data that other tasks write",
    ),
    "B68": Bug("a cached translation was marked valid after an invalidation", ("58cd407ca4c6",)),
    "B69": Bug("memslots were read without SRCU", ("4bcdd831d9d0",)),
    "B70": Bug(
        "a store stayed in its buffer across a check",
        ("226d9b8f1688",),
        absent="memory is sequentially consistent (D30), and there is no write tracking (D10)",
    ),
    "B71": Bug("the slot zap told the slot's pages inexactly", ("58a20a9435aa",)),
    "B72": Bug("a range was unmapped outside of an invalidation", ("28cf49788107",)),
    "B73": Bug(
        "a slot-only zap was reverted, root cause never found",
        ("aa8d1f48d353",),
        absent="nothing to re-create; policy slot-leaves is judged like the others",
    ),
    "B74": Bug("an unlinked table kept its last reference", ("f6a27d6dc51b",)),
    "B75": Bug(
        "top-level entries only partly inside of the range were never zapped", ("524a1e4e381f",)
    ),
    "B76": Bug(
        "a page-selective IOTLB flush missed the end of an unaligned range", ("59bf3557cf2f",)
    ),
}
"""Every bug by its number."""
