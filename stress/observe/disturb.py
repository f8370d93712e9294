"""Delays at preemption points: the cheap way to make a rare interleaving common on real threads."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping

from mmu.probe import Instrument, Listener, override
from mmu.runtime import Local, PerThreadCounter, Runtime
from mmu.task import current
from stress.scenario.types import Disturbances


def _dice(runtime: Runtime, seed: int) -> Local[random.Random]:
    """Each task's own."""
    return runtime.local(lambda: random.Random(f"{seed}/delay/{current.task.name}"))


class Delays(Instrument):
    """An instrument that sometimes waits at P1..P20 (reference 2.16); each thread has a
    generator of its own."""

    def __init__(
        self,
        runtime: Runtime,
        config: Disturbances,
        seed: int,
        asked: PerThreadCounter,
        counter: PerThreadCounter,
    ) -> None:
        """`asked` counts arrivals at the points with delays, `counter` the delays."""
        self._asked = asked
        self._sleep = runtime.sleep
        self._shares = config.delay_shares()
        self._longest = config.delay_s
        self._dice = _dice(runtime, seed)
        self._counter = counter

    @override
    def listeners(self) -> Mapping[str, Listener]:
        return super().listeners() if self._shares else {}  # else every point would cost a call

    @override
    def point(self, name: str) -> None:
        share = self._shares.get(name)
        if share is not None:
            self._asked.add(1)
            dice = self._dice.mine
            if dice.random() < share:
                self._counter.add(1)
                self._sleep(dice.random() * self._longest)


class Failures:
    """Fault injection: steps that fail for no reason, by the scenario's shares; each thread has a
    generator of its own."""

    def __init__(
        self,
        runtime: Runtime,
        config: Disturbances,
        seed: int,
        asked: PerThreadCounter,
        injected: PerThreadCounter,
    ) -> None:
        """`asked` counts the steps that might have been made fail, `injected` those that were."""
        self._asked = asked
        self._injected = injected
        self._shares = {
            "hwpt_attach": config.fail_attach,
            "get_unused_fd": config.fail_fd,
            "prepare_memory_region": config.fail_prepare,
            "switch_root": config.fail_switch,
        }
        self._dice = _dice(runtime, seed)
        self.fail_function: Callable[[str], bool] | None = (
            self._fails if any(self._shares.values()) else None
        )

    def _fails(self, step: str) -> bool:
        if current.task.name == "setup":
            return False
        share = self._shares.get(step, 0.0)
        fails = self._dice.mine.random() < share
        self._asked.add(share > 0)
        self._injected.add(fails)
        return fails
