"""Recordings of real kernels: read them, judge them with the project's oracles, and say how to make
one."""
