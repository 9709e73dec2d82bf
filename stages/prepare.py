"""Prepare one data set: conf/dataset -> data/datasets/<name>/<preset>/.

If its files are not available, the reason goes to stderr and to `.scratch/unavailable/<name>-<preset>.txt`. The runner
and the report read it there.
"""

import sys

from lightning_modules import settings
from lightning_modules.datasets.download import DataUnavailable
from lightning_modules.files import ROOT, scratch
from stages.command import run_stage, stage_arguments
from stages.composing import compose


def main() -> None:
    """Call the data set's `prepare`."""
    arguments = stage_arguments("name")
    preset = arguments.preset
    notice = scratch() / "unavailable" / f"{arguments.name}-{preset}.txt"
    notice.unlink(missing_ok=True)  # of an earlier try: another failure is no missing file
    config = compose(preset, dataset=arguments.name)["dataset"]
    prepare = settings.bind(config, f"conf/dataset/{arguments.name}/{preset}.yaml")
    try:
        prepare(ROOT / "data/datasets" / arguments.name / preset)
    except DataUnavailable as error:
        notice.parent.mkdir(parents=True, exist_ok=True)
        notice.write_text(f"{error}\n")
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    run_stage(main)
