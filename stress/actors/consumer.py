"""The consumer of the exported root: a device that does DMA, and the worker that answers its IO
page faults."""

from __future__ import annotations

import errno
from collections.abc import Iterator

from mmu.errors import KvmError
from mmu.export.device import Dma
from mmu.export.iommu import KvmHwpt, PageRequest
from mmu.export.tdp_fd import TdpFd
from mmu.runtime import Cell
from stress.actors.accesses import PATTERN, AccessProgram, Habits, program
from stress.actors.base import Actor, Stage
from stress.scenario.operations import Op, dma_op

ATTACH = Op("attach")
DETACH = Op("detach")


class IopfWorker(Actor):
    """The IO page fault workqueue of one device: takes requests in order, asks KVM, responds."""

    parks = False
    serves = True

    def __init__(self, stage: Stage, name: str) -> None:
        super().__init__(stage, name)
        self.queue = stage.vm.kvm.runtime.queue("IO page faults")
        self.closed = stage.vm.kvm.runtime.cell("iopf.closed", False)

    def finished(self) -> bool:
        """When the device is gone and its last request answered."""
        return self.closed.value and not len(self.queue)

    def step(self) -> None:
        """Wait for a request, handle it."""
        if not len(self.queue):
            self.stage.vm.kvm.runtime.wait_until(
                "an IO page fault", lambda: len(self.queue) > 0 or self.closed.value
            )
        request = self.queue.take()
        if request is not None:
            request.domain.handle(request)


class SharedTdpFd:
    """The VMM's file descriptor of the exported TDP: opened by the first device, closed by the
    last.

    Once `recycling` is set every device lets go of it, and none gets it back before the last has:
    so the root is un-exported now and then, however many devices there are.
    """

    def __init__(self, stage: Stage) -> None:
        self._stage = stage
        self._lock = stage.vm.kvm.sync.mutex("vmm->tdp_fd")
        self._fd: Cell[TdpFd | None] = stage.vm.kvm.runtime.cell("vmm.tdp_fd", None)
        self.recycling: Cell[bool] = stage.vm.kvm.runtime.cell("vmm.tdp_fd.recycling", False)
        self._users = stage.vm.kvm.runtime.counter("vmm.tdp_fd.users")

    def open(self) -> TdpFd:
        """The fd, created if need be; `KvmError` when somebody else has exported the root, or by
        injection."""
        with self._lock:
            fd = self._fd.value
            if fd is not None and self.recycling.value:
                raise KvmError(errno.EAGAIN, "the TDP FD is about to be closed")
            if fd is None:
                fd = self._stage.vm.create_tdp_fd(0)
                self._fd.value = fd
                self._stage.counts["exports"].add(1)
            self._users.add(1)
        return fd

    def close(self) -> None:
        """One device less; the last one closes the fd, which un-exports the root."""
        with self._lock:
            fd = self._fd.value
            assert fd is not None
            if self._users.fetch_add(-1) == 1:
                self._fd.value = None
                self.recycling.value = False
                if self._stage.vm.close_tdp_fd(fd):
                    self._stage.counts["unexports"].add(1)


class Consumer(Actor):
    """One device: opens the TDP FD, attaches, does DMA; closes and reopens now and then."""

    def __init__(self, stage: Stage, number: int, worker: IopfWorker, fds: SharedTdpFd) -> None:
        super().__init__(stage, f"device{number}")
        self._fds = fds
        config = stage.scenario.actors.consumer
        self._dice = stage.dice(self.name)
        self.worker = worker
        habits = Habits(config.write_share, config.churn_share, 0.01, config.window_pages)
        self._programs: list[AccessProgram] = (
            [program(stage, self._dice, 0, habits)] if self.script is None else []
        )
        self._group = config.group
        self._bursts = config.bursts
        self._prefetch_share = config.prefetch_share
        self._reexport_ns = (
            int(1e9 / config.reexports_per_s) if config.reexports_per_s and number == 0 else 0
        )
        self._exported_at = 0
        self.device = stage.vm.create_device(self.name, ats=config.ats)
        self.hwpt: KvmHwpt | None = None
        """The domain that the device is attached to; its engine looks at it, too."""
        self.accesses = 0
        self.aborts = 0
        self._answers = 0
        self.verbs |= {
            "dma-read": lambda gfn: self.dma(gfn << 1),
            "dma-write": lambda gfn: self.dma(gfn << 1 | 1),
            "dma": self.dma,
            "prefetch-read": lambda gfn: self.prefetch(gfn, write=False),
            "prefetch-write": lambda gfn: self.prefetch(gfn, write=True),
            "attach": self.attach,
            "detach": self._detach,
        }

    def begin(self) -> None:
        """Open and attach before the run starts."""
        self._attach()

    def choose(self) -> Iterator[Op]:
        """A burst of DMA; now and then a new TDP FD."""
        runtime = self.stage.vm.kvm.runtime
        if not self.attached:
            yield ATTACH
            if not self.attached:
                runtime.sleep(0.001)
                return
        if self._reexport_ns and runtime.now() - self._exported_at > self._reexport_ns:
            self._fds.recycling.value = True
        if self._fds.recycling.value:
            yield DETACH
            return
        for _ in range(self._bursts):
            burst = self._next(self._group)
            if self._prefetch_share and self._dice.random() < self._prefetch_share:
                yield self._ahead_of(burst)
            yield burst

    def end(self) -> None:
        """Detach, close, let the worker go. If the process just dies, the device goes on until its
        memory has gone."""
        dies = self.stage.scenario.actors.exit.enabled and self.attached
        if self.script is not None:
            self.stay()
            self._await_exit(dies)
        elif dies:
            self._outlive_the_process()
        else:
            self.do(DETACH)  # not the end of everybody's: a script that does the same must say when
        self._detach()
        self.worker.closed.store(True)

    def _outlive_the_process(self) -> None:
        """DMA while exit_mmap is at work, and after it."""
        gone, rounds = self.stage.vm.kvm.mm_gone, self.stage.run_flags.rounds
        made = 0
        while not gone.value and made < rounds:
            self.do(self._next(1))
            made += 1
        self._await_exit(True)
        for _ in range(int(min(rounds, 2 * PATTERN // 16))):
            self.do(self._next(1))

    def _await_exit(self, dies: bool) -> None:
        gone = self.stage.vm.kvm.mm_gone
        if dies and not gone.value:
            self.stage.vm.kvm.runtime.wait_for_all("exit_mmap", gone)

    @property
    def attached(self) -> bool:
        """Whether the device is bound to a TDP FD."""
        return self.hwpt is not None

    def attach(self) -> None:
        """Open the fd and bind the device to it; nothing if it is bound. May fail."""
        if not self.attached:
            self._attach()

    def dma(self, *accesses: int) -> None:
        """Transfer a scatter list; nothing while the device is detached."""
        if self.attached:
            self._dma([(access >> 1, bool(access & 1)) for access in accesses])

    def _next(self, count: int) -> Op:
        """The next scatter list as an operation."""
        (accesses,) = self._programs
        group = accesses.ahead(count)
        accesses.advance(count)
        return dma_op(group[0]) if count == 1 else Op("dma", group)

    def _ahead_of(self, burst: Op) -> Op:
        """The page request of a device that knows what it is about to do."""
        first = burst.pieces()[0]
        return Op(first.name.replace("dma", "prefetch"), first.args)

    def _dma(self, group: list[tuple[int, bool]]) -> None:
        """Transfer a scatter list: what faults is requested as one group, and then tried again."""
        runtime = self.stage.vm.kvm.runtime
        hwpt = self.hwpt
        assert hwpt is not None
        for _ in range(8):
            missing = []
            for gfn, write in group:
                done = self.device.transact(gfn, write)
                self.accesses += done is Dma.DONE
                if done is None:
                    missing.append((gfn, write))
            if not missing:
                return
            code = self._request(hwpt, missing).code
            runtime.wait_for_all("a page response", code)
            self._answers += 1
            if code.value == "FAILURE":
                break
            group = missing
        self.aborts += 1

    def prefetch(self, gfn: int, write: bool) -> None:
        """Ask for a page and go on without waiting for the response; nothing while detached."""
        if self.hwpt is not None:
            self._request(self.hwpt, [(gfn, write)])
            self.stage.counts["prefetches"].add(1)

    def _request(self, hwpt: KvmHwpt, faults: list[tuple[int, bool]]) -> PageRequest:
        """Put a page request group into the queue."""
        request = hwpt.request(faults)
        self.worker.queue.put(request)
        return request

    def _attach(self) -> bool:
        """Open the fd and bind the device to it; false when that failed, as it may."""
        try:
            fd = self._fds.open()
        except KvmError as error:
            if error.errno != errno.EAGAIN:
                self.stage.counts["exports_refused"].add(1)
            return False
        try:
            self.hwpt = self.stage.vm.attach(self.device, fd)
        except KvmError:
            self.stage.counts["attach_failures"].add(1)
            self._fds.close()
            return False
        self._exported_at = self.stage.vm.kvm.runtime.now()
        return True

    def _detach(self) -> None:
        if self.hwpt is not None:
            hwpt, self.hwpt = self.hwpt, None
            hwpt.destroy()
            self._fds.close()

    def moved(self) -> int:
        """Steps, and what happens within one: each scatter list may wait for several answers,
        behind those that others wait for."""
        return self.progress + self.accesses + self.aborts + self._answers

    def figures(self) -> dict[str, int]:
        """The device's counters."""
        return {
            "accesses": self.accesses,
            "aborts": self.aborts,
            "devtlb_hits": self.device.devtlb_hits,
            "iotlb_hits": self.device.hits,
            "iotlb_walks": self.device.walks,
        }

    def totals(self) -> dict[str, int]:
        """Its share of the run's counters."""
        return {
            "device_accesses": self.accesses,
            "device_aborts": self.aborts,
            "device_devtlb_hits": self.device.devtlb_hits,
            "device_iotlb_hits": self.device.hits,
            "device_walks": self.device.walks,
        }
