"""`python -m scaling`: the command line."""

import sys

from scaling.cli import main

sys.exit(main())
