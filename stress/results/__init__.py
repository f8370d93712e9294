"""The store: run directories and the record in them."""
