"""`python -m pgsched`: the command line."""

from pgsched.cli import main

main()
