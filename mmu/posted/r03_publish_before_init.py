"""R3: the fd is installed before the object is complete and on the list."""

from mmu.export.importer import ExportedTdp, ExportedTdps
from mmu.export.tdp_fd import Exporter, TdpFd
from mmu.numbers.defects import titled
from mmu.variant import Variant


class ListLast(ExportedTdps):
    """The object is added to the list as the very last step."""

    def insert_early(self, exported: ExportedTdp) -> None:
        """Not yet; the address space is claimed all the same, so this is not R1."""

    def publish(self, exported: ExportedTdp) -> None:
        """Insert, whatever has become of the object meanwhile."""
        with self.exported_tdplist_lock:
            self.insert(exported)


class InstallFirst(Exporter):
    """User space sees the fd before the object is on the list."""

    def finish(self, fd: TdpFd) -> None:
        """fd_install, and only then list_add."""
        self.fd_install(fd)
        if self.kvm.probe.point is not None:
            self.kvm.probe.point("P17")
        self.exported_tdps.publish(fd.exported)


VARIANT = Variant(
    name="r3-publish-before-init",
    title=titled("R3"),
    parts=(ListLast, InstallFirst),
    expects=("O17",),
    rule="an object is complete and listed before anybody can reach it",
    origin="reference 1.11 R3, kvm_create_tdp_fd() (patches 03, 04)",
    story=(
        "creator: fd_install",
        "second thread: guesses the fd and closes it: release deletes a list entry that was never "
        "added, and frees the object",
        "creator: adds the freed object to the list",
        "creator: (or alone, where no fd number is left) fput runs the same release, of an object "
        "that is on no list",
    ),
)
