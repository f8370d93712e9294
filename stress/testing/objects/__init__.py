"""Plain objects as shared state: which attributes, variables and items the code under test reads
and writes, for which of them tasks race, and steps for those."""
