"""Count what a training of each paper's main arm costs: -> results/<preset>/<paper>/costs.json, which the page shows.

One seed of one arm is built, as its training would, and computes its first steps on the prepared data set. Nothing is
trained: the weights stay those of the start. So the numbers follow from configuration and data alone.
"""

import argparse
import itertools
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning_modules.files import ROOT, write_json
from lightning_modules.settings import bind, meant
from stages.command import add_preset, run_stage
from stages.composing import compose, downstream
from stages.page.comparing import COUNTED
from stages.plan import Plan, PlanError, load_plan

if TYPE_CHECKING:
    from lightning_modules.base import PaperModule

STEPS = 12  # that are counted; the mean evens out what differs from step to step, such as the task or the frames


def main_training(plan: Plan, stem: str) -> str:
    """The arm of `pretrain` that stands for a paper: the one that bears its name, or else that of its first row.

    Of a comparison of fine-tuned arms, it is one that these start from; the last, if none bears the paper's name.
    """
    row = next(row for row in plan.evaluate.values() if row.paper == stem)
    row = plan.evaluate.get(stem, row)
    read = plan.trained(row, downstream(row.system, plan.preset) if row.stage == "finetune" else ())
    arms = [arm for stage, arm in read if stage == "pretrain"]
    return stem if stem in arms else arms[-1]


def built(plan: Plan, arm: str) -> "PaperModule":
    """The network of an arm as it is before its first step, of the first seed."""
    import torch

    row = plan.pretrain[arm]
    start = built(plan, row.start).export() if row.start else None
    system, where = described(plan, arm)
    torch.manual_seed(plan.seeds_of(row)[0])
    module = bind(system["model"], f"{where}: model")()
    module.recipe = module.check_recipe(system["pretrain"], f"{where}: pretrain")
    if start is not None:
        module.start_from(start)
    return module


def data_of(plan: Plan, arm: str, folder: Path) -> Any:
    """The LightningDataModule that an arm is trained on, from the folder of its prepared data set."""
    system, where = described(plan, arm)
    seed = plan.seeds_of(plan.pretrain[arm])[0]
    return bind(system["data"], f"{where}: data", folder=folder, seed=seed)()


def described(plan: Plan, arm: str) -> tuple[dict, str]:
    """The system of an arm with its overrides, and the file that it comes from."""
    row = plan.pretrain[arm]
    system = compose(plan.preset, system=row.system, overrides=row.overrides)["system"]
    return system, f"conf/system/{row.system}/{plan.preset}.yaml"


def count(module: "PaperModule", data: Any) -> dict[str, Any]:
    """Learned values and multiply-adds of a training.

    Frozen networks count in what a step computes, and not in what is learned. Counted as in `metrics.compute`, but on
    the processor: steps that look at their data cannot be taken on the meta device. The steps are those after the
    first, which may set up a codebook.

    Returns:
        `parameters` that are learned, `steps` of the whole training, and `macs_per_step`, forward and backward: the
        mean over `STEPS` steps.
    """
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    from lightning_modules.metrics.compute import FLOPS_PER_MAC

    module.check_data(data)
    loader, counted = data.train_dataloader(), []
    for number, batch in enumerate(itertools.islice(loader, STEPS + 1)):
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            module.train().training_step(batch, number).backward()
        counted.append(counter.get_total_flops() // FLOPS_PER_MAC)
    limit = module.max_steps(data)
    return {
        "parameters": sum(p.numel() for p in module.parameters() if p.requires_grad),
        "steps": limit if limit != -1 else module.recipe["epochs"] * len(loader),
        "macs_per_step": round(sum(counted[1:]) / len(counted[1:])),
    }


def main() -> None:
    """Count for all papers of a preset, or for some."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--paper", nargs="*", default=[], help="stems of papers, such as maskalign (default: all)")
    add_preset(parser)
    arguments = parser.parse_args()
    plan = load_plan(arguments.preset)
    known = sorted({row.paper for row in plan.evaluate.values()})
    for stem in arguments.paper:
        if stem not in known:
            raise PlanError(f"no paper {stem!r} in plans/{plan.preset}{meant(stem, known)}")
    for stem in arguments.paper or known:
        arm = main_training(plan, stem)
        folder = ROOT / "data/datasets" / plan.pretrain[arm].dataset / plan.preset
        found = {"arm": arm, **count(built(plan, arm), data_of(plan, arm, folder))}
        write_json(ROOT / "results" / plan.preset / stem / COUNTED, found)
        print(f"{stem}: a step of {arm} takes {found['macs_per_step']:,} multiply-adds")


if __name__ == "__main__":
    run_stage(main)
