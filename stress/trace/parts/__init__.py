"""The checks of `stress trace check`: each part looks at the events it names, and owns the rules it
judges by."""
