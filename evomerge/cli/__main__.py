"""`python -m evomerge`."""

from evomerge.cli.main import main

main()
