"""`python -m ttengine` is the same as `ttengine`."""

import sys

from ttengine.cli import main

if __name__ == "__main__":
    sys.exit(main())
