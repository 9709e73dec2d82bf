"""Prepares one data set: `python -m stages.prepare mnist --preset tiny`.

Where its files are not to be had, the reason goes to stderr and to `.scratch/unavailable/<name>-<preset>.txt`, from
which the runner and the report tell what is missing.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from hydra import compose, initialize_config_dir
from hydra.utils import get_method
from omegaconf import OmegaConf

from lightning_modules.datasets.download import DataUnavailable

CONF = Path(__file__).resolve().parents[1] / "conf"


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit code: 0, or 1 when the data set is unavailable."""
    options = _parse(arguments)
    preset = options.preset or OmegaConf.load(options.plan).preset
    notice = Path(".scratch/unavailable", f"{options.name}-{preset}.txt")
    config = compose_dataset(options.name, preset)
    prepare = get_method(config.pop("_target_"))
    try:
        prepare(Path("data/datasets", options.name, preset), **config)
    except DataUnavailable as error:
        notice.parent.mkdir(parents=True, exist_ok=True)
        notice.write_text(f"{error}\n")
        print(error, file=sys.stderr)
        return 1
    notice.unlink(missing_ok=True)
    return 0


def compose_dataset(name: str, preset: str) -> dict:  # moves to stages/plan.py
    """The composed `conf/dataset/<name>/<preset>.yaml` as plain values."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = compose(overrides=[f"+dataset={name}/{preset}"])
    return OmegaConf.to_container(config.dataset, resolve=True)


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m stages.prepare", description=__doc__)
    parser.add_argument("name", help="data set: a folder of conf/dataset")
    parser.add_argument("--preset", help="tiny or paper; default: the preset of the plan")
    parser.add_argument("--plan", type=Path, default=Path("params.yaml"), help="the experiment plan (%(default)s)")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
