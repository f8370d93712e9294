"""What runs on the workers of a cluster: who they are, and tasks handed to agents."""

from __future__ import annotations

import contextlib
import os
import pickle
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

from attrs import define, field, frozen

import stress
from stress.runs.fanout.identity import Identity, differences, identity
from stress.runs.fanout.task import FanoutTask, Greeting, Trouble
from stress.scenario.errors import StressError

OVER = "the batch is over"


class VersionSkew(StressError):
    """A worker on which something is not as it is where the batch was started."""


@frozen
class RemoteBatch:
    """What every worker has to know: the batch's name, what has to be the same everywhere, and
    by the worker's address the first of the places for processes on its machine that are its
    own."""

    name: str
    identity: Identity
    slots: dict[str, int] = field(factory=dict)

    @property
    def files(self) -> tuple[str, ...]:
        """The user's files that tasks read."""
        return tuple(path for path, _ in self.identity.files)


def check(batch: RemoteBatch) -> tuple[str, ...]:
    """On a worker: what is not as it has to be."""
    return tuple(differences(batch.identity, identity(batch.files)))


def carry_out(batch: RemoteBatch, task: FanoutTask) -> Any:
    """On a worker: the task's result, or `Trouble`; raises `VersionSkew` where results would not
    fit the others."""
    return carry_out_at(_address(), batch, task)


def carry_out_at(address: str, batch: RemoteBatch, task: FanoutTask) -> Any:
    """The same, by an agent of the worker at this address."""
    agent = _POOL.take(address, batch)
    result = agent.carry_out(task)
    _POOL.give_back(batch, agent)
    return result


def end(name: str) -> None:
    """On a worker: the batch of this name is over; what it has running is not wanted any
    more."""
    _POOL.end(name)


def _address() -> str:
    from distributed import get_worker  # noqa: PLC0415 - only there where tasks arrive through it

    return str(get_worker().address)


class Agent:
    """An agent's process, seen from the worker."""

    def __init__(self, greeting: Greeting) -> None:
        root = str(Path(stress.__path__[0]).parent)
        known = os.environ.get("PYTHONPATH")
        self.slot = greeting.slot
        self.process = subprocess.Popen(
            # what the worker has imported, not what lies where it was started
            [sys.executable, "-P", "-m", "stress.runs.fanout.agent"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, (root, known)))},
        )
        self.identity = self._ask(greeting)

    def carry_out(self, task: FanoutTask) -> Any:
        """The task's result, or what became of it instead."""
        return self._ask(task)

    def is_alive(self) -> bool:
        """Whether it can carry out another task."""
        return self.process.poll() is None

    def end(self) -> None:
        """End it, and with it what it has running."""
        self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()

    def _ask(self, request: object) -> Any:
        requests, answers = self.process.stdin, self.process.stdout
        assert requests is not None
        assert answers is not None
        try:
            pickle.dump(request, requests)
            requests.flush()
            return pickle.load(answers)  # noqa: S301 - from the process that we have started
        except (EOFError, OSError, ValueError, pickle.UnpicklingError):
            self.process.kill()
            return Trouble(
                f"the agent that carried it out ended with exit code {self.process.wait()}"
            )


@define
class _Pool:
    """The agents of this worker, by batch: as many as tasks run at a time."""

    _lock: threading.Lock = field(factory=threading.Lock)
    _idle: dict[str, list[Agent]] = field(factory=dict)
    _busy: dict[str, list[Agent]] = field(factory=dict)
    _starting: dict[str, set[int]] = field(factory=dict)
    _over: set[str] = field(factory=set)

    def take(self, address: str, batch: RemoteBatch) -> Agent:
        """An idle agent, or a new one."""
        name = batch.name
        with self._lock:
            if name in self._over:
                raise StressError(OVER)
            idle, busy = self._idle.setdefault(name, []), self._busy.setdefault(name, [])
            if idle:
                busy.append(idle.pop())
                return busy[-1]
            slot = self._free_slot(address, batch)
        try:
            agent = _checked(Agent(Greeting(slot, batch.files)), address, batch)
        finally:
            with self._lock:
                self._starting[name].discard(slot)
        with self._lock:
            if name not in self._over:
                busy.append(agent)
                return agent
        agent.end()
        raise StressError(OVER)

    def give_back(self, batch: RemoteBatch, agent: Agent) -> None:
        """The agent has nothing to do."""
        with self._lock:
            busy = self._busy.get(batch.name, [])
            if agent in busy:
                busy.remove(agent)
                if agent.is_alive():
                    self._idle[batch.name].append(agent)

    def end(self, name: str) -> None:
        """End all agents of a batch."""
        with self._lock:
            self._over.add(name)
            agents = self._idle.pop(name, []) + self._busy.pop(name, [])
        for agent in agents:
            agent.end()

    def _free_slot(self, address: str, batch: RemoteBatch) -> int:
        """The first place that none of our agents has; on a worker that came late, one that its
        number decides."""
        name = batch.name
        starting = self._starting.setdefault(name, set())
        taken = {agent.slot for agent in self._idle[name] + self._busy[name]} | starting
        slot = batch.slots.get(address, os.getpid())
        while slot in taken:
            slot += 1
        starting.add(slot)
        return slot


def _checked(agent: Agent, address: str, batch: RemoteBatch) -> Agent:
    """The agent, if it is what the batch needs."""
    if isinstance(agent.identity, Trouble):
        raise StressError(f"worker {address}: {agent.identity.text}")
    problems = tuple(differences(batch.identity, agent.identity))
    if problems:
        agent.end()
        raise VersionSkew(skew_message({address: problems}))
    return agent


def skew_message(problems: dict[str, tuple[str, ...]]) -> str:
    """Which workers cannot be used, and why."""
    lines = [f"  {address}: {problem}" for address, found in problems.items() for problem in found]
    head = (
        "these workers are not what this command runs with, so their results would not fit; "
        "install the same everywhere:"
    )
    return "\n".join([head, *lines])


_POOL = _Pool()
