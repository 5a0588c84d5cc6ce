"""Runs `served.py` inside of fastvideo's environment: python fastvideo.py "" JOBS.json."""

import runpy
import sys
from pathlib import Path

sys.argv[1] = "fastvideo"
runpy.run_path(str(Path(__file__).with_name("served.py")), run_name="__main__")
