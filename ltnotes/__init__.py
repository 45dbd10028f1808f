"""The Long-Tail Notes: methods for long-tailed visual recognition, small enough to read."""

import os

__version__ = "0.1.0"

# OpenMP's threads wait for each other by spinning. With another process on the same
# cores, spinning makes training several times slower; waiting passively does not. It
# has to be said before torch is loaded, and reaches the kernels that run chapters.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
