"""Comparing runs or groups of runs: figures, statistics that claim nothing by chance, and a
sentence a claim."""
