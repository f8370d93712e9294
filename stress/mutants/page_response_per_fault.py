"""Each fault of a page request group is answered by itself."""

from mmu.parts import KvmHwpt, PageRequest
from stress.mutants.case import Case, Mutant


class ResponsePerFault(KvmHwpt):
    """A fault that is served is a fault that can be answered."""

    def handle(self, request: PageRequest) -> None:
        """One response for each fault of the group."""
        for gfn, write in request.faults:
            self.respond(request, self.io_fault(gfn, write))


VARIANT = Mutant(
    name="page-response-per-fault",
    title="the faults of a page request group are answered one by one",
    parts=(ResponsePerFault,),
    expects=("O16",),
    rule="a page request group has one response, and it is SUCCESS only if every fault was served",
    origin="iopf_group_response(), iommufd_kvmtdp_handle_iopf(); reference 1.7",
    story=(
        "device: one group of two page requests",
        "IOPF worker: serves the first and answers SUCCESS: the device goes on",
        "IOPF worker: serves the second and answers again: no request is pending",
    ),
    confidence="V",
    tags=("export", "vtd"),
    controlled=Case("explore/group-vs-delete"),
    threads=Case("explore/group-vs-delete"),
)
