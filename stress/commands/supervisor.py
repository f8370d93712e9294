"""The supervisor: a command is carried out by a child of it, and every end of the child has an exit
code and, where it kept a result, a record.

The child is forked before anything but the command line is imported, which costs a millisecond.
Only what it has noted in `stress.results.known` counts: an exit status can come from anywhere, such
as `os._exit(0)` in a variant.
"""

from __future__ import annotations

import fcntl
import os
import signal
import sys
import time
from collections.abc import Callable
from types import FrameType
from typing import Final

from stress.results.known import KNOWN, Owner

PATIENCE_S: Final = 5.0
"""An interrupt that comes this many seconds after the first one, or later, ends a child that is
still there."""
INTERNAL: Final = 6
"""`stress.results.verdict.ExitCode.INTERNAL`, which is not imported here."""
INTERRUPTS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def supervised(command: Callable[[], int]) -> int:
    """Carry out `command` in a child, which returns its exit code from here. This process ends with
    it, too, and does not return."""
    _open_standard_streams()
    KNOWN.share()
    signal.pthread_sigmask(signal.SIG_BLOCK, INTERRUPTS)
    here, there = os.pipe()
    try:
        pid = os.fork()
    except OSError as error:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, INTERRUPTS)
        print(f"stress: cannot start a process: {error.strerror}", file=sys.stderr)  # noqa: T201 - nothing else is there yet
        return INTERNAL
    if pid == 0:
        os.close(there)
        _end_with_parent(here)
        _listen(_Interrupted())
        code = command()
        KNOWN.ends_with(code)
        return code
    os.close(here)
    relay = _Relay(pid)
    _listen(relay)
    _, status = os.waitpid(pid, 0)
    os.close(there)
    # there is nothing to tidy up
    os._exit(KNOWN.code if KNOWN.code is not None else _settled(status, relay))


def _open_standard_streams() -> None:
    """Let a descriptor that was closed lead nowhere: otherwise the next file that is opened would
    have it, and with it the command's output."""
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)


def _listen(handler: Callable[[int, FrameType | None], None]) -> None:
    """Let `handler` have the interrupts, but for those that were ignored when we were started."""
    for number in INTERRUPTS:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, handler)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, INTERRUPTS)


class _Interrupted:
    """In the child: the first interrupt ends what is going on; those that follow change nothing, so
    that what is known is judged and kept in peace."""

    def __call__(self, _number: int, _frame: FrameType | None) -> None:
        for number in INTERRUPTS:
            signal.signal(number, signal.SIG_IGN)
        raise KeyboardInterrupt


class _Relay:
    """In the supervisor: the first interrupt goes on to the child, which may have it already; one
    that comes when the child has had time to end ends it where it stands."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._first: float | None = None
        self.forced = False

    def __call__(self, number: int, _frame: FrameType | None) -> None:
        now = time.monotonic()
        if self._first is None:
            self._first = now
            os.kill(self._pid, number)
        elif now - self._first >= PATIENCE_S:
            self.forced = True
            os.kill(self._pid, signal.SIGKILL)


def _end_with_parent(lifeline: int) -> None:
    """Have the kernel kill the child when its supervisor is killed: the pipe to it breaks then."""
    Owner.pid = os.getppid()
    if not hasattr(fcntl, "F_SETSIG"):  # pragma: no cover - not on Linux
        return
    fcntl.fcntl(lifeline, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(lifeline, fcntl.F_SETSIG, signal.SIGKILL)
    flags = fcntl.fcntl(lifeline, fcntl.F_GETFL)
    fcntl.fcntl(lifeline, fcntl.F_SETFL, flags | os.O_ASYNC)
    if os.getppid() != Owner.pid:
        os.kill(os.getpid(), signal.SIGKILL)


def _settled(status: int, relay: _Relay) -> int:
    """The exit code of a child that has noted none; its record says how it ended."""
    code = os.waitstatus_to_exitcode(status)
    how = f"exited with {code}" if code >= 0 else f"was ended by {signal.Signals(-code).name}"
    try:
        from stress.commands import streams  # noqa: PLC0415 - nearly no command needs it
        from stress.runs import ends  # noqa: PLC0415 - as above

        streams.replaced()
        crash = ends.crashed(f"its process {how} in the middle of it")
        forced = ends.interrupted("it was interrupted again and again, and did not end")
        result = ends.settle(forced if relay.forced else crash)
        sys.stderr.flush()
    except BaseException as error:  # there is always an exit code
        os.write(2, f"stress: the process {how}, and then: {error!r}\n".encode())
        return INTERNAL if KNOWN.verdict is None else KNOWN.verdict.exit_code
    return result
