"""The harness: scenarios, engines, actors, oracles, observers, reports. Imports `mmu`, never the other way round."""
