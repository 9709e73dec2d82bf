"""What every command line of `stages/` shares: its arguments, and one line for a user's error."""

import argparse
import os
import signal
import sys
from collections.abc import Callable

from lightning_modules.files import ROOT
from lightning_modules.processes import die_with_parent
from stages.plan import PRESETS


def stage_arguments(*names: str) -> argparse.Namespace:
    """Command line of a stage: the given names, then `--preset`."""
    parser = argparse.ArgumentParser(description=sys.modules["__main__"].__doc__)
    for name in names:
        parser.add_argument(name)
    add_preset(parser)
    return parser.parse_args()


def add_preset(parser: argparse.ArgumentParser) -> None:
    """Let a command line choose the preset."""
    parser.add_argument("--preset", default="tiny", choices=PRESETS, help="tiny (default) or paper")


def run_stage(main: Callable[[], None]) -> None:
    """Run a stage as a child that dies with its parent and ends a user's error in one line and exit code 1."""
    die_with_parent()  # SIGTERM to dvc would leave the stage running, and writing
    os.chdir(ROOT)
    try:
        main()
    except FileNotFoundError as error:
        sys.exit(f"error: {error.filename}: no such file or folder")
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        print("interrupted: the same command goes on from here", file=sys.stderr)
        sys.exit(128 + signal.SIGINT)
