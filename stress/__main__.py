"""`python -m stress`."""

from stress.cli import main

main()
