"""What the server of trainings imports once. Imported in that server only: it ties its life to ours."""

import gc
import importlib
import os
import signal

from lightning_modules.processes import PRELOAD, PRELOAD_ENVIRONMENT, die_with_parent

signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the runner, which tells its children
die_with_parent()
os.environ.update(PRELOAD_ENVIRONMENT)
for name in PRELOAD:
    importlib.import_module(name)

gc.collect()
gc.freeze()  # what is here now stays: a collection in a child would copy its pages
