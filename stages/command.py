"""What all commands in `stages/` share: their arguments, and one-line messages for errors of the user."""

import argparse
import os
import sys
from collections.abc import Callable

from lightning_modules.files import ROOT
from lightning_modules.processes import Stopped, asked, die_with_parent, stop_on_signals
from stages.plan import PRESETS


def stage_arguments(*names: str) -> argparse.Namespace:
    """The command line of a stage: the given arguments, then `--preset`."""
    parser = argparse.ArgumentParser(description=sys.modules["__main__"].__doc__)
    for name in names:
        parser.add_argument(name)
    add_preset(parser)
    return parser.parse_args()


def add_preset(parser: argparse.ArgumentParser) -> None:
    """Add the option `--preset`."""
    parser.add_argument("--preset", default="tiny", choices=PRESETS, help="tiny (default) or paper")


def run_stage(main: Callable[[], None]) -> None:
    """Run a stage. It ends when its parent process ends; an error of the user gives one line and exit code 1.

    SIGTERM, SIGUSR1 and Ctrl-C end it with `processes.GO_ON_LATER`; a training ends when its step is done.
    """
    die_with_parent()  # otherwise the stage goes on after SIGTERM to dvc
    stop_on_signals()
    os.chdir(ROOT)
    try:
        main()
    except FileNotFoundError as error:
        sys.exit(f"error: {error.filename}: no such file or folder")
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    except Stopped:
        print(f"stopped{f' by {asked[0].name}' if asked else ''}: the same command goes on from here", file=sys.stderr)
        raise
