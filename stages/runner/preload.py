"""What the server that forks trainings imports, once. Import it only there: it ends the process with its parent."""

import gc
import importlib
import os
import signal

from lightning_modules.processes import PRELOAD, PRELOAD_ENVIRONMENT, die_with_parent

for number in (signal.SIGINT, signal.SIGUSR1):  # the runner handles them and signals its children
    signal.signal(number, signal.SIG_IGN)
die_with_parent()
os.environ.update(PRELOAD_ENVIRONMENT)
for name in PRELOAD:
    importlib.import_module(name)

gc.collect()
gc.freeze()  # exempt these objects from garbage collection, which would copy their memory pages in each child
