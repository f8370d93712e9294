"""A Dask cluster as a place for tasks: it distributes them, and does again what a lost worker had.

A task that ends its worker again and again is given up after
`distributed.scheduler.allowed-failures` tries (3, unless the scheduler was told otherwise), and is
`Trouble` then.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import secrets
import time
import warnings
from collections.abc import Iterator, Mapping
from queue import Empty, SimpleQueue
from typing import Any

from stress.runs.fanout import remote
from stress.runs.fanout.cluster import ClusterLost
from stress.runs.fanout.identity import identity
from stress.runs.fanout.remote import RemoteBatch, VersionSkew
from stress.runs.fanout.task import FanoutTask, Trouble
from stress.scenario.errors import StressError

CONNECT_S = 20.0
"""How long to try to reach the scheduler."""
PATIENCE_S = 60.0
"""How long to wait for a worker when there is none."""
SAME = ("python", "dask", "distributed", "cloudpickle", "msgpack")
"""What must have the same version on the scheduler, the workers and here, for tasks to be
understood at all."""
NOT_YET = ("lost", "pending")
"""What a task is that had been done, until the worker died that had its result: it is being done
again."""
LOST = "the connection to the Dask scheduler was lost"


class DaskCluster:
    """The workers of one scheduler, for one batch."""

    def __init__(self, client: Any, batch: RemoteBatch) -> None:
        self._client = client
        self._batch = batch
        self._ended: SimpleQueue[Any] = SimpleQueue()
        self._running: dict[str, tuple[int, Any]] = {}
        self._alone_since: float | None = None

    def places(self) -> int:
        """How many threads the workers have together; one while there is none, as others may
        come."""
        return max(1, sum(self._threads().values()))

    def start(self, number: int, task: FanoutTask) -> None:
        """Submit it."""
        key = f"{self._batch.name}-{number}"
        with _lost():
            future = self._client.submit(remote.carry_out, self._batch, task, key=key, pure=False)
        self._running[key] = (number, future)
        future.add_done_callback(self._ended.put)

    def next_end(self, timeout_s: float) -> tuple[int, Any] | None:
        """The next result. Raises `ClusterLost` when the scheduler or every worker is gone, and for
        a worker that is not what the batch was started with."""
        try:
            future = self._ended.get(timeout=timeout_s)
        except Empty:
            self._look_for_workers()
            return None
        if future.status in NOT_YET:
            future.add_done_callback(self._ended.put)
            return None
        number, _ = self._running.pop(future.key)
        with _lost():
            return number, _result(future)

    def close(self) -> None:
        """Give up what is running, here and there."""
        with contextlib.suppress(Exception):  # a scheduler that has gone has nothing to give up
            self._client.cancel([future for _, future in self._running.values()], force=True)
            self._client.run(remote.end, self._batch.name, on_error="ignore")
        with contextlib.suppress(Exception):
            self._client.close(timeout=5)

    def _look_for_workers(self) -> None:
        if self._threads():
            self._alone_since = None
        elif self._alone_since is None:
            self._alone_since = time.monotonic()
        elif time.monotonic() - self._alone_since > PATIENCE_S:
            raise ClusterLost(
                f"the scheduler has had no worker for {PATIENCE_S:.0f} s: start some with 'dask "
                "worker ADDRESS'"
            )

    def _threads(self) -> dict[str, int]:
        with _lost():
            found: dict[str, int] = self._client.nthreads()
            return found


@contextlib.contextmanager
def _lost() -> Iterator[None]:
    """Dask says in several ways that the scheduler does not answer any more."""
    try:
        yield
    except ClusterLost:
        raise
    except Exception as error:
        raise ClusterLost(LOST) from error


def _result(future: Any) -> Any:
    """What became of a task."""
    if future.status == "finished":
        return future.result()
    if future.status != "error":
        raise ClusterLost(LOST)
    error = future.exception()
    if isinstance(error, VersionSkew):
        raise ClusterLost(str(error))
    if isinstance(error, ModuleNotFoundError):
        raise ClusterLost(
            f"a worker cannot carry out tasks: {error}; install the same version of tdp-stress on "
            "every machine"
        )
    return Trouble(f"{type(error).__name__}: {error}")


@contextlib.contextmanager
def cluster_at(address: str, files: tuple[str, ...] = ()) -> Iterator[DaskCluster]:
    """The cluster of the scheduler at `address`, on which every worker has what is needed; raises
    `StressError` otherwise."""
    wanted = identity(files)  # before anything is imported that a run would not import
    client = _connect(address)
    try:
        _check_packages(client.get_versions())
        batch = RemoteBatch(
            f"stress-{secrets.token_hex(6)}", wanted, first_slots(client.nthreads())
        )
        _check_workers(client, batch)
    except BaseException:
        client.close(timeout=5)
        raise
    cluster = DaskCluster(client, batch)
    try:
        yield cluster
    finally:
        cluster.close()


def _connect(address: str) -> Any:
    """A client with at least one worker behind it."""
    try:
        from distributed import Client  # noqa: PLC0415 - an extra, for those who ask for it
        from distributed.comm.addressing import parse_address, parse_host_port  # noqa: PLC0415
    except ImportError:
        raise StressError(
            "--scheduler needs Dask, which is an extra: pip install 'tdp-stress[campaign]'"
        ) from None
    for name in ("distributed", "distributed.client"):
        # what goes wrong is told as an error of ours
        logging.getLogger(name).setLevel(logging.CRITICAL + 1)
    warnings.filterwarnings("ignore", module="distributed")  # of versions: they are compared below
    try:
        parse_host_port(parse_address(address)[1])  # a client that cannot be made tells it twice
        client = Client(address, timeout=CONNECT_S, set_as_default=False, name="stress")
    except (OSError, ValueError, TypeError) as error:
        raise StressError(f"there is no Dask scheduler at {address}: {error}") from None
    try:
        client.wait_for_workers(1, timeout=PATIENCE_S)
    except TimeoutError:
        client.close(timeout=5)
        raise StressError(
            f"the scheduler at {address} has no worker: start some with 'dask worker {address}'"
        ) from None
    return client


def _check_packages(found: Mapping[str, Any]) -> None:
    """Refuse what would not understand each other."""
    here = _versions(found["client"])
    others = {"the scheduler": found["scheduler"], **found["workers"]}
    problems = {
        name: tuple(
            f"{package} {there.get(package)}, here it is {here[package]}"
            for package in SAME
            if there.get(package) != here[package]
        )
        for name, there in ((name, _versions(other)) for name, other in others.items())
    }
    wrong = {name: each for name, each in problems.items() if each}
    if wrong:
        raise VersionSkew(remote.skew_message(wrong))


def _versions(found: Mapping[str, Any]) -> dict[str, str | None]:
    packages = found.get("packages", {})
    return {package: packages.get(package) for package in SAME}


def _check_workers(client: Any, batch: RemoteBatch) -> None:
    """Refuse workers with another tdp-stress, or with none."""
    answers = client.run(remote.check, batch, on_error="return")
    problems = {
        address: (str(found),) if isinstance(found, BaseException) else found
        for address, found in answers.items()
    }
    wrong = {address: found for address, found in problems.items() if found}
    if wrong:
        raise VersionSkew(remote.skew_message(wrong))


def first_slots(threads: Mapping[str, int]) -> dict[str, int]:
    """By worker: the first of its places among the processes of its machine, so that workers on one
    machine have different ones."""
    slots: dict[str, int] = {}
    machine = lambda address: address.rpartition(":")[0]  # noqa: E731 - said once, used twice
    for _, workers in itertools.groupby(sorted(threads, key=machine), machine):
        following = 0
        for address in workers:
            slots[address] = following
            following += threads[address]
    return slots
