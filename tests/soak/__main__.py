"""`python tests/soak --help` says what this does."""

import sys
from pathlib import Path

if __name__ == "__main__":
    # The package itself and drivers.py are in tests/.
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    from soak.cli import main

    sys.exit(main())
