"""Spreading independent pieces of work over processes: many attempts, many runs, one report."""
