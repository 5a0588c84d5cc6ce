"""Runs `served.py` inside of sglang's environment: python sglang.py "" JOBS.json."""

import runpy
import sys
from pathlib import Path

sys.argv[1] = "sglang"
runpy.run_path(str(Path(__file__).with_name("served.py")), run_name="__main__")
