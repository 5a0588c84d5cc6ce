"""One thread per process: pytest runs one process per core, and more threads would get in each other's way."""

import os

for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(name, "1")
# Nothing in the tests may reach a hub by accident; tests of the Hub client set their own endpoint.
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
