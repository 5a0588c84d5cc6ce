"""A start of Python as where the extra `quantised` is not installed: diffusers imports all of it that it finds."""

import sys

sys.modules.update(dict.fromkeys(("bitsandbytes", "optimum", "torchao")))
