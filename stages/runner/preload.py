"""What the server that trainings are forked from imports once.

Only that server imports this module: it ties the life of the process to that of its parent.
"""

import gc
import signal

from lightning_modules.processes import die_with_parent

signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the runner, which tells its children
die_with_parent()

import torchmetrics  # noqa: E402, F401
import transformers  # noqa: E402, F401

from lightning_modules import training  # noqa: E402, F401

gc.collect()
gc.freeze()  # what is here now stays: a collection in a child would copy its pages
