"""``python -m data_prep``: the command line of :mod:`data_prep.cli`, interrupted in one line."""

from __future__ import annotations

import sys


def main(arguments: list[str] | None = None) -> int:
    try:
        from data_prep import cli  # PyTorch takes seconds, in which Ctrl-C can come

        return cli.main(arguments)
    except KeyboardInterrupt:
        print("interrupted; nothing half-written is left", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
