"""The exported root: TDP FD, importers, the outside walker, and policies."""
