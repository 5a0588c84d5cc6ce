"""`python -m unlearning_adapters` is the command `unlearn`."""

import sys

from unlearning_adapters.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
