"""Tasks with store buffers on greenlets."""

from __future__ import annotations

from stress.engines.greenlets import GreenletCarrier, GreenletScheduler
from stress.engines.store_buffers import StoreBuffers, carrier_number


class BufferedGreenlets(StoreBuffers, GreenletScheduler):
    """A scheduler whose tasks are greenlets, each with a store buffer."""

    def _carrier(self, index: int) -> GreenletCarrier:
        return GreenletScheduler._carrier(self, carrier_number(index))
