"""`python -m trainer RECIPE key=value …`: the same as `scaling train`."""

from __future__ import annotations

import sys

from scaling.cli import main

if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:]]))
