"""`python -m rectiflow`: the same as the command `rectiflow`."""

import sys

from rectiflow.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
