"""`python -m unlearning_adapters` is the command `unlearn`."""

import sys

from .cli import main

if __name__ == "__main__":
    sys.exit(main())
