"""Calls a function of `work` in a process of its own. Imports torch only there."""

import json
import multiprocessing
import os
import signal
import time
import traceback
from collections.abc import Mapping, Sequence
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

from lightning_modules.processes import die_with_parent


def call(name: str, arguments: Sequence[Any], result: str, log: str, environment: Mapping[str, str]) -> None:
    """Write into `result` what a function of `work` found, or why it failed; what it prints goes into `log`."""
    os.setsid()
    multiprocessing.set_start_method(None, force=True)  # loaders fork; else each starts a server that imports torch
    die_with_parent()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.environ.clear()
    os.environ.update(environment)
    with open(log, "w") as file, redirect_stdout(file), redirect_stderr(file):
        for stream in (1, 2):
            os.dup2(file.fileno(), stream)
        found = found_by(name, arguments) | {"cpu_seconds": time.process_time()}
        file.flush()
        Path(result).write_text(json.dumps(found))
        os._exit(0)  # threads of CUDA and OpenMP may wait for each other at the end


def found_by(name: str, arguments: Sequence[Any]) -> dict[str, Any]:
    """What a function of `work` gives: `found`, or `error` in one line and perhaps `out_of_memory`."""
    import torch

    from stages.rehearsal import work

    try:
        return {"found": getattr(work, name)(*arguments)}
    except SystemExit as error:  # a stage has said why in one line
        return {"error": str(error.code).removeprefix("error: ")}
    except (torch.OutOfMemoryError, MemoryError) as error:
        return {"error": f"no memory left: {' '.join(str(error).split())[:200]}", "out_of_memory": True}
    except (ValueError, ConnectionError) as error:  # written for users
        return {"error": " ".join(str(error).split())}
    except Exception as error:  # whatever a stage cannot do is what a rehearsal is there to find
        traceback.print_exc()
        return {"error": f"{type(error).__name__}: {' '.join(str(error).split())[:400]}"}
