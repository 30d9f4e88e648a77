"""What the plugin tells besides its results."""

from __future__ import annotations

import sys

from woodfrog.image.inspect import readable


def tell(text: str) -> None:
    """Write a line to stderr; names that containers and images have chosen can be in it."""
    sys.stderr.write(f"woodfrog: {readable(text)}\n")
