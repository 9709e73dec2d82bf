"""What the stages `pretrain` and `finetune` share: an arm is trained, and what its seeds have logged is kept apart.

-> data/curves/<preset>/{pretrain,finetune}/<arm>/[<protocol>/]seed-<seed>/history.csv. The page reads these small
files, so that it does not depend on folders with weights.
-> built.json beside the seeds, see `composing.how_built`.
"""

import shutil
from collections.abc import Mapping
from pathlib import Path

from lightning_modules.files import ROOT, replace_folder, write_json
from stages.arms import record_training
from stages.composing import BUILT, how_built
from stages.plan import Plan, Row


def train(
    plan: Plan,
    row: Row,
    configs: Mapping[str, dict],
    *,
    stage: str,
    out: Path,
    folders: Mapping[str, Path],
    only: str | None,
) -> None:
    """Train a row of `pretrain` or `finetune`.

    Args:
        plan: of the preset.
        row: of the plan.
        configs: see `training.train_stages`, as for all that are not named here.
        stage: of the pipeline.
        out: the output folder of the stage.
        folders: of each of the trainings.
        only: the one seed to be trained, or None for all.
    """
    from lightning_modules import training  # imports torch and Lightning: only after the plan was checked

    written = training.train_stages(
        configs,
        arm=row.arm,
        paper=row.paper,
        system=row.system,
        preset=plan.preset,
        seeds=plan.seeds_of(row),
        only=only,
        dataset=ROOT / "data/datasets" / row.dataset / plan.preset,
        sources=ROOT / "data/sources" / plan.preset / f"{stage}.{row.system}.json",
        start=ROOT / "data/runs" / plan.preset / row.start / "pretrain" if row.start else None,
        out=out,
        folders=folders,
    )
    if written:
        write_json(out / BUILT, how_built(plan, plan.pretrain[row.start] if stage == "finetune" else row))
        keep_histories(out, ROOT / "data/curves" / plan.preset / stage / row.arm)
        for folder in folders.values():
            record_training(plan, row, folder)


def keep_histories(out: Path, folder: Path) -> None:
    """Copy the `history.csv` of every seed in `out`."""
    with replace_folder(folder) as new:
        for path in sorted(out.rglob("seed-*/history.csv")):
            target = new / path.relative_to(out)
            target.parent.mkdir(parents=True)
            shutil.copyfile(path, target)
