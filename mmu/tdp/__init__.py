"""The TDP MMU proper: iterator, SPTE writers, roots, zaps and faults."""
