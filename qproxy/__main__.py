"""`python -m qproxy`."""

import sys

from qproxy.cli import main

if __name__ == "__main__":
    sys.exit(main())
