"""A zip of class folders with some of another one's images, for chapters at ``tiny``.

Most of a training of some dozens of batches is looking at CIFAR's thousands of images.
``python -m tests.notebooks.thin SOURCE TARGET``
"""

import sys
import zipfile
from collections import Counter
from pathlib import PurePosixPath

KEEP_EVERY = 5  # of the images of a class, which lie sorted by what they were searched with


def main(source: str, target: str) -> None:
    seen: Counter[PurePosixPath] = Counter()
    with zipfile.ZipFile(source) as whole, zipfile.ZipFile(target, "w") as thin:
        for entry in whole.infolist():
            path = PurePosixPath(entry.filename)
            seen[path.parent] += 1
            if seen[path.parent] % KEEP_EVERY == 0:
                thin.writestr(entry, whole.read(entry))


if __name__ == "__main__":
    main(*sys.argv[1:])
