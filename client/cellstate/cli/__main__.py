"""`python -m cellstate.cli`."""

from cellstate.cli import main

main()
