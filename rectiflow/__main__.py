"""`python -m rectiflow`: the same as the command `rectiflow`."""

import sys

from rectiflow.cli.main import command

if __name__ == "__main__":
    sys.exit(command())
