"""Everything that the reference numbers, one line each: O oracles, I invariants, R defects, B bugs,
P preemption points, M measurements, D differences.

Code and reports take their titles from here, and `docs/reference/glossary.md` is generated from it.
"""
