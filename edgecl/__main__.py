"""`python -m edgecl`: the command line."""
from __future__ import annotations

import sys

from edgecl.cli import main

if __name__ == "__main__":
    sys.exit(main())
