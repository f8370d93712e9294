"""Physical CPUs: what vCPUs run on, and whose translation caches they use and leave behind."""

from __future__ import annotations

from typing import Final

from mmu.kvm import Kvm
from mmu.memory.tlb import TranslationCache, span_key
from mmu.paging.table import RootPage


class OwnCpu:
    """A physical CPU that one vCPU has for itself, with a cache that does not know roots: a vCPU
    that switches roots has to empty it."""

    tagged = False
    """Whether what was cached below one root is told from what was cached below another."""

    def __init__(self, kvm: Kvm) -> None:
        self.cache = kvm.parts[TranslationCache]()

    def occupy(self) -> None:
        """Put the calling vCPU on this CPU. Waits for the vCPU that is on it."""

    def leave(self) -> None:
        """Take the vCPU off."""

    def cache_of(self, root: RootPage | None) -> TranslationCache:  # noqa: ARG002 - for CPUs with tags
        """The cache that a guest below `root` uses."""
        return self.cache

    def enter(self, root: RootPage | None) -> None:
        """The guest is entered with `root`: from here on its cache is used."""

    def flush_all(self) -> None:
        """Drop everything (INVEPT, all contexts)."""
        self.cache.flush()

    def flush_context(self, root: RootPage | None) -> None:  # noqa: ARG002 - for CPUs with tags
        """Drop what was cached below `root` (INVEPT, single context)."""
        self.cache.flush()

    def drop_violated(self, root: RootPage | None, gfn: int) -> None:
        """An EPT violation at `gfn`."""


class PhysicalCpu(OwnCpu):
    """A physical CPU of several, on which vCPUs take turns. Whoever has occupied it touches its
    caches.

    Each cache is tagged by the address of the root below which it was filled (EP4TA). So a vCPU
    that switches roots finds what it left below the other root, a vCPU that moves to another CPU
    leaves everything behind, and a root at the address of a freed one finds what that one left.
    """

    STANDS_FOR: Final = "hardware: EPT-tagged TLB and paging-structure caches of a logical CPU"

    tagged = True

    def __init__(self, kvm: Kvm, number: int) -> None:
        super().__init__(kvm)
        self.number = number
        self._kvm = kvm
        self._lock = kvm.runtime.lock(f"pcpu{number}")
        self._contexts: dict[int, TranslationCache] = {}
        self._filled_for: dict[int, RootPage] = {}
        """The root that each context was used for last."""
        self._shifts = kvm.geometry.shifts()[1:]

    def __str__(self) -> str:
        return f"pcpu{self.number}"

    def occupy(self) -> None:
        """Wait for the vCPU that is on this CPU, and put the calling one on it."""
        self._lock.acquire()

    def leave(self) -> None:
        """Take the vCPU off; its translations stay."""
        self._lock.release()

    def cache_of(self, root: RootPage | None) -> TranslationCache:
        """The context of the root's address; without a root an empty cache."""
        if root is None:
            return self.cache
        address = root.address
        found = self._contexts.get(address)
        if found is None:
            fresh = self._kvm.parts[TranslationCache]()
            found = self._contexts.setdefault(address, fresh)
        return found

    def enter(self, root: RootPage | None) -> None:
        """The context of `root` is used from here on: report what another root at the same address
        has left in it."""
        if root is None:
            return
        before = self._filled_for.get(root.address)
        if before is not root:
            self._filled_for[root.address] = root
            cache = self.cache_of(root)
            if before is not None and (cache.entries or cache.huge or cache.tables):
                self._warn_left(root)

    def contexts(self) -> dict[int, TranslationCache]:
        """The contexts that there are, by the root's address."""
        return dict(self._contexts)

    def flush_all(self) -> None:
        """INVEPT of all contexts (ept_sync_global())."""
        for cache in self.contexts().values():
            cache.flush()

    def flush_context(self, root: RootPage | None) -> None:
        """INVEPT of one context (ept_sync_context()); nothing without a root."""
        if root is not None:
            self.cache_of(root).flush()

    def drop_violated(self, root: RootPage | None, gfn: int) -> None:
        """Drop every cached step of the walk for `gfn` below `root`, as an EPT violation does."""
        cache = self.cache_of(root)
        cache.entries.pop(gfn, None)
        for shift in self._shifts:
            cache.huge.pop(span_key(gfn, shift), None)
            cache.tables.pop(span_key(gfn, shift), None)

    def _warn_left(self, root: RootPage) -> None:
        self._kvm.warn(
            "O1",
            "context-of-freed-root",
            f"BUG: a guest is entered on {self} with {root.describe()}, and the CPU still has "
            "translations of a freed root that had the same address",
            "whoever loads a root flushes what the CPU has cached for its address: zapping and "
            "freeing an invalid root flush nothing",
            "kvm_mmu_load(), kvm_x86_flush_tlb_current; reference 2.6 no-flush rule, D16",
            subject="root address",
        )
