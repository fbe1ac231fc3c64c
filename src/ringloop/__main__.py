"""`python -m ringloop`: the command line."""

import sys

from ringloop.cli import main

if __name__ == "__main__":
    sys.exit(main())
