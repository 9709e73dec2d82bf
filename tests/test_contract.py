"""What every system of the tiny plan must do, and what every arm computes, on data that needs no download.

Systems and arms are those of the plan: a new paper needs no change here, only `tests/<paper>/golden/<arm>.txt`.
"""

import inspect
import os
from pathlib import Path

import pytest
import torch
from hydra.utils import get_method, instantiate
from pytorch_lightning import seed_everything
from torch import Tensor

from lightning_modules import settings
from stages.composing import compose
from stages.plan import PRESETS, load_plan
from tests.conftest import STEMS

PLANS = {preset: load_plan(preset) for preset in PRESETS}
PLAN = PLANS["tiny"]
LATER = 1e-3  # relative, of losses after the first: see the last test


def composed(row):
    return compose("tiny", system=row.system, overrides=row.overrides)["system"]


def downloaded(dataset):
    """Whether its files come from elsewhere: then its `prepare` takes the folder of a local copy."""
    prepare = get_method(compose("tiny", dataset=dataset)["dataset"]["_target_"])
    return "mirror" in inspect.signature(prepare).parameters


ARMS = [
    arm
    for arm, row in PLAN.pretrain.items()
    if row.paper in STEMS and composed(row)["pretrain"]["epochs"] and not downloaded(row.dataset)
]
# One arm of each system has the whole body: the first that takes the system's file as it is, or else the first.
CHOSEN = {
    PLAN.pretrain[arm].system: arm for arm in sorted(ARMS, key=lambda arm: bool(PLAN.pretrain[arm].overrides))[::-1]
}


@pytest.fixture
def build(request, prepared):
    """Makes the network of an arm, or of the chosen arm of a system, and its data."""
    names = request.node.callspec.params
    row = PLAN.pretrain[names["arm"] if "arm" in names else CHOSEN[names["system"]]]
    config = composed(row)

    def build():
        module = instantiate_seeded(config)
        if row.start:
            module.start_from(instantiate_seeded(composed(PLAN.pretrain[row.start])).export())
        data = instantiate(config["data"], folder=prepared(row.dataset), seed=0, _convert_="all")
        module.check_data(data)  # as before each training
        return module, data

    return build


def instantiate_seeded(system):
    seed_everything(0, verbose=False)
    module = instantiate(system["model"], _convert_="all")
    module.recipe = system["pretrain"]
    return module


def losses(module, batches, lr=1e-3):
    optimizer = torch.optim.AdamW([p for p in module.parameters() if p.requires_grad], lr=lr)
    for step, batch in enumerate(batches):
        loss = module.training_step(batch, step)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        yield loss.item()


@pytest.mark.parametrize("system", CHOSEN)
def test_each_trainable_parameter_gets_a_gradient(system, build):
    module, data = build()
    module.training_step(next(iter(data.train_dataloader()))).backward()
    assert not [name for name, p in module.named_parameters() if p.requires_grad and p.grad is None]


@pytest.mark.parametrize("system", CHOSEN)
def test_sixty_steps_on_one_batch_lower_the_loss_and_a_seed_fixes_it(system, build):
    runs = []
    for steps in (60, 10):
        module, data = build()
        runs.append(list(losses(module, [next(iter(data.train_dataloader()))] * steps)))
    assert runs[0][:10] == runs[1]
    assert runs[0][-1] < 0.85 * runs[0][0]  # augmented images with smoothed labels fall the least


@pytest.mark.parametrize("system", CHOSEN)
def test_saved_and_loaded_gives_the_same_loss_and_the_same_predictions(system, build):
    module, data = build()
    other, _ = build()
    batch = next(iter(data.train_dataloader()))
    list(losses(module, [batch] * 3))
    other.load_state_dict(module.state_dict())
    first, second = (each.predictions(data, torch.device("cpu")) for each in (module, other))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[key], second[key]) for key in first)
    again = []
    for each in (module, other):
        seed_everything(1, verbose=False)
        again.append(each.train().training_step(batch).item())
    assert again[0] == again[1]


@pytest.mark.parametrize("system", CHOSEN)
def test_what_a_network_exports_says_the_same_of_stored_data_once_another_took_it_over(system, build):
    """So MLflow's model of a trained seed predicts: `load_export`, then `forward`."""
    module, data = build()
    batch = next(iter(data.train_dataloader()))
    seed_everything(7, verbose=False)
    with torch.random.fork_rng():
        other, _ = build()
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(1.0)
    other.load_export(module.export())
    own = next(iter(inspect.signature(module.forward).parameters))
    name = next(name for name in (own, "video", "images", "token_ids") if name in batch)
    stored = (batch[name].flatten(0, -4) if name == "images" else batch[name])[:4]
    with torch.inference_mode():
        first, second = (each.eval()(stored) for each in (module, other))
    assert len(first) == len(stored) and torch.equal(first, second)


@pytest.fixture
def drawn(monkeypatch):
    """Not empty once something was drawn with chances that the network gave."""
    found = []
    for owner in (torch, Tensor):
        draw = owner.multinomial

        def noting(*args, draw=draw, **kwargs):
            found.append(True)
            return draw(*args, **kwargs)

        monkeypatch.setattr(owner, "multinomial", noting)
    return found


@pytest.mark.parametrize("arm", ARMS)
def test_the_first_losses_are_those_that_are_written_down(arm, build, drawn):
    """A change of these numbers is a change of results: it needs a line in CHANGES.md.

    The first loss holds on every processor. Later ones may differ by rounding where the code paths are not held at
    AVX2. Once something is drawn with chances that the network gave, rounding can change what is drawn: there only
    the first loss is compared.
    `REPRISE_GOLDEN=write pytest tests/test_contract.py` writes them anew.
    """
    module, data = build()
    found = list(losses(module, [batch for batch, _ in zip(data.train_dataloader(), range(10), strict=False)]))
    if drawn:
        found = found[:1]
    path = Path(__file__).parent / PLAN.pretrain[arm].paper / f"golden/{arm}.txt"
    if os.environ.get("REPRISE_GOLDEN") == "write":
        path.parent.mkdir(exist_ok=True)
        path.write_text("".join(f"{step} {loss:.7g}\n" for step, loss in enumerate(found)))
    expected = [float(line.split()[1]) for line in path.read_text().splitlines()]
    assert found[0] == pytest.approx(expected[0], rel=1e-5)
    assert found == pytest.approx(expected, rel=LATER)


TUNED = [(preset, stem) for preset, plan in PLANS.items() for stem in sorted({r.paper for r in plan.finetune.values()})]


@pytest.mark.parametrize(("preset", "stem"), TUNED)
def test_every_fine_tuned_arm_builds_and_takes_the_encoder_that_it_starts_from(preset, stem):
    plan, seen = PLANS[preset], []
    for row in (row for row in plan.finetune.values() if row.paper == stem):
        start = plan.pretrain[row.start]
        upstream = compose(preset, system=start.system, overrides=start.overrides)["system"]
        blocks = compose(preset, system=row.system, overrides=row.overrides, stage="finetune")["system"]["downstream"]
        if (upstream["model"], blocks) in seen:
            continue
        seen.append((upstream["model"], blocks))
        encoder = bound(upstream, "pretrain").export()
        for name, block in blocks.items():
            recipe = {key: value for key, value in block.items() if key not in ("model", "data")}
            bound({**block, name: recipe}, name).start_from(encoder)


def bound(blocks, recipe):
    """The module of some blocks on the meta device, after its settings were held against what takes them."""
    with torch.device("meta"):
        module = settings.bind(blocks["model"], "model")()
    module.check_recipe(blocks[recipe], recipe)
    settings.bind(blocks["data"], "data", folder=Path(), seed=0)
    return module
