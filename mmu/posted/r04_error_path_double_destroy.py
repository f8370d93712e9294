"""R4: when no fd number is left, the release and the error path both undo the export."""

from mmu.export.tdp_fd import Exporter, TdpFd
from mmu.numbers.defects import titled
from mmu.variant import Variant


class UndoTwice(Exporter):
    """The error path does by hand what fput() has done already."""

    def abandon(self, fd: TdpFd) -> None:
        """fput, then destroy again. (The posted path puts the VM twice as well: that would free it
        under everybody's feet, and end the run without explaining it.)"""
        root = fd.exported.root.value
        fd.put()
        self.kvm.mmu_lock.write_lock()
        if root is not None:
            self.roots.put_root(root, shared=False)
        self.kvm.mmu_lock.write_unlock()


VARIANT = Variant(
    name="r4-error-path-double-destroy",
    title=titled("R4"),
    parts=(UndoTwice,),
    expects=("O4",),
    rule="each reference is put once",
    origin="reference 1.11 R4, kvm_create_tdp_fd() error path",
    story=(
        "creator: the anon file exists, get_unused_fd fails",
        "creator: fput runs release: un-export, put of the root, put of the VM",
        "creator: the error path puts the root once more",
    ),
)
