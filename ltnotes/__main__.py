"""``ltnotes`` and ``python -m ltnotes``: the command line of :mod:`ltnotes.cli`, interrupted in one line."""

from __future__ import annotations

import sys


def main(arguments: list[str] | None = None) -> int:
    try:
        from ltnotes import cli  # PyTorch takes seconds, in which Ctrl-C can come

        return cli.main(arguments)
    except KeyboardInterrupt:
        print("interrupted; the same command goes on from here", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
