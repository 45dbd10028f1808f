"""The Long-Tail Notes: methods for long-tailed visual recognition, small enough to read."""

__version__ = "0.1.0"
