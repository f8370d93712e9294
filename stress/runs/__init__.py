"""One scenario run again and again with different seeds: every run stored like any other, one
verdict for all."""
