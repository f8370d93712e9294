"""Verbs of the command line, by what they are about; each calls one function elsewhere."""
