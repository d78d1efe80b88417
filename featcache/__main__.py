"""The program `featcache`: runs the command line and turns every expected error into one clear message."""

from __future__ import annotations

import sys


def main() -> None:
    """Run the command line; exit 0 when done, 1 when it failed, 2 when it was called wrongly."""
    from featcache.commands.root import run

    sys.exit(run(sys.argv[1:]))


if __name__ == "__main__":
    main()
