"""What the TDP MMU stands on: host memory, memslots, requests and TLBs."""
