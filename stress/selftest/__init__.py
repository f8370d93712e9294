"""The zoo: known-broken variants with the scenarios that show them, and the selftest that proves
that they are caught.

`mutant` says what a mutant is, `registry` has them all, `attempt` tries one on one engine,
`selftest` all of them in parallel, `matrix` tells the result, `page` explains one.
"""
