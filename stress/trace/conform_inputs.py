"""What a recording says about its machine only between the lines: where the slots' memory lies,
which vCPU an ioctl meant.

None of this is compared. It is what the model has to be given, read off the whole recording.
"""

from __future__ import annotations

from stress.trace.conform_memory import Slots, find_memory
from stress.trace.conform_script import DELETE, MOVE, ConformScript, Item, Operation
from stress.trace.conform_values import BEGIN, Happening
from stress.trace.layouts import span

NEAR = 60
"""How many happenings of the recording the winner's line can come after the end of the loser's
fault."""


def find_inputs(script: ConformScript) -> None:
    """Fill in what the operations need."""
    slots = find_memory(script)
    for operation in script.operations:
        if operation.kind == "fault":
            results = operation.given.get("tdp_page_fault_ret", [])
            operation.given["failed"] = any(result.get("ret", 0) < 0 for result in results)
            kinds = {done.kind for done in operation.did}
            retried = any(
                done.kind == "fault_done" and done.values[0] == "RETRY" for done in operation.did
            )
            operation.given["sees"] = _sees(operation, kinds, retried)
            operation.given["seq"] = next(
                (done.values[1] for done in operation.did if done.kind == "stale"), None
            )
            operation.given["unseen"] = operation.given["reserved"] and not operation.did
            operation.given["looks_early"] = not operation.given["reserved"] or (
                "mmio_check" not in kinds and "fault_done" in kinds
            )
            operation.given["retried_early"] = retried and not kinds & {"stale", "fast"}
    script.unborn = next(
        filter(None, (_unborn(operation, slots) for operation in script.operations)), ""
    )
    _find_reset_vcpus(script)
    _find_services(script)
    _find_races(script)


def _sees(operation: Operation, kinds: set[str], retried: bool) -> str:
    """What slot the fault has found, as far as its end shows: "none", "valid", or "invalid or
    changing"; "" if it does not."""
    if "map" in kinds:
        frame = operation.given.get("pfn")
        return "" if frame is None else "none" if frame >> 52 else "valid"
    return "invalid" if retried and not kinds & {"stale", "fast"} else ""


def _find_services(script: ConformScript) -> None:
    """Which service of a request is followed by another one that no newer request explains."""
    last: dict[tuple[int, str], Operation] = {}
    for item in script.items:
        done, operation = item.what, item.operation
        if not isinstance(done, Happening) or operation is None:
            continue
        if done.kind == "request":
            for vcpu, name in list(last):
                if name == done.values[0]:
                    del last[vcpu, name]
        elif done.kind == "served":
            before = last.get((operation.vcpu, done.values[0]))
            if before is not None:
                before.given["served_again"] = True
            operation.given["served_again"] = False
            last[operation.vcpu, done.values[0]] = operation


def _find_races(script: ConformScript) -> None:
    """A fault that had nothing against it and still has to be retried has lost an entry to another
    fault: which one?"""
    for position, item in enumerate(script.items):
        done = item.what
        if not isinstance(done, Happening) or done.kind != "mapped" or done.values[0] != "RETRY":
            continue
        assert item.operation is not None
        winner = _winner(script, position, item.operation)
        if winner is not None:
            item.operation.given["loses"] = winner.what
            script.races.append((item.operation, winner))


def _winner(script: ConformScript, position: int, loser: Operation) -> Item | None:
    """The entry on the loser's way that another fault has changed while it was under way, or a
    little later (an event follows its write); the nearest in the recording."""
    gfn = loser.given["gfn"]
    near: list[tuple[int, Item]] = []
    for other in range(position + NEAR, -1, -1):
        if other >= len(script.items):
            continue
        item = script.items[other]
        if item.operation is loser and item.what == BEGIN:
            break
        done = item.what
        if (
            item.operation is None
            or item.pid == loser.pid
            or item.operation.kind != "fault"
            or not isinstance(done, Happening)
        ):
            continue
        if done.kind == "spte" and done.values[1] == gfn & -span(done.values[2]):
            near.append((abs(other - position), item))
    return min(near, key=lambda pair: pair[0])[1] if near else None


def _unborn(operation: Operation, slots: Slots) -> str:
    """What an operation presupposes although nothing in the recording has made it."""
    given = operation.given
    if operation.kind == "fault" and given["sees"] == "valid":
        gfn = given["gfn"]
        if not any(first <= gfn < end for first, end in slots.covered):
            return (
                f"line {operation.line}: a fault maps gfn {gfn:#x}, which no slot that was created "
                "here covers"
            )
    if (
        operation.kind == "set-region"
        and given.get("change") in (DELETE, MOVE)
        and not slots.had(given)
    ):
        return f"line {operation.line}: slot {given['slot']} is changed, but was not created here"
    return ""


def _find_reset_vcpus(script: ConformScript) -> None:
    """KVM_SET_SREGS does not say for which vCPU: the next one that loads a root without having
    dropped its own is it."""
    for index, operation in enumerate(script.operations):
        if operation.kind != "reset-context" or operation.vcpu >= 0 or not _drops(operation):
            continue
        dropped: set[int] = set()
        for later in script.operations[index + 1 :]:
            if later.kind == "free-obsolete":
                dropped.add(later.vcpu)
            elif later.kind == "load-root" and later.vcpu not in dropped:
                operation.vcpu = later.vcpu
                break


def _drops(operation: Operation) -> bool:
    """Whether the vCPU had a root to drop."""
    return any(done.kind == "put" for done in operation.did)
