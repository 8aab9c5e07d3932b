"""`python -m arc_halo` is the program `arc-halo`."""

from arc_halo.cli.main import main

main()
