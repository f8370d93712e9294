"""The selftest: proves that every mutant is caught, and that nothing fires on correct code.

`registry` lists all mutants with their scenarios, `attempt` tries one on one engine, `selftest`
all of them in parallel, `matrix` prints the result, `page` explains one.
"""
