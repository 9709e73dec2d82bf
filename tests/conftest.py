"""What holds for every test: one thread, and run records that stay on this disk."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported: more threads only wait for each other here
os.environ.setdefault("REPRISE_TRACKING", "local")  # no test starts a mirror unless it means to
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
