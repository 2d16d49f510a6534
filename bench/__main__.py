"""python -m bench: see cli.py."""

import sys

from . import allocator

if __name__ == "__main__":
    allocator.restart_with_settings()
    from .cli import main

    sys.exit(main())
