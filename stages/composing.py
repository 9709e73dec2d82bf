"""The configuration of a stage: files of `conf/`, composed by Hydra, with the overrides of a row of the plan."""

import os
from collections.abc import Collection, Iterable, Iterator
from contextlib import suppress
from copy import deepcopy
from pathlib import Path
from typing import Any

from lightning_modules.files import ROOT
from lightning_modules.settings import CODE, check_keys, located, meant
from stages.plan import Plan, PlanError, Row

HERE = Path(__file__).parents[1]  # where the modules of a `_target_` lie
SYSTEM_BLOCKS = ("model", "data", "pretrain")
FURTHER_BLOCKS = {"finetune": "downstream", "evaluate": "evaluate"}  # what this stage needs in addition, in its systems
BUILT = "built.json"  # what a training writes of `how_built`
CALLED_BLOCKS = ("model", "data", "evaluate")  # those with a `_target_`


def compose(
    preset: str,
    *,
    system: str = "",
    dataset: str = "",
    trainer: str = "",
    sweep: str = "",
    machines: str = "",
    overrides: dict | None = None,
    stage: str = "",
    resolve: bool = True,
) -> dict:
    """The configuration of one stage: any of the groups of `conf/`.

    `overrides` are keys of the sweep file if one is given, otherwise of the system file, nested or dotted:
    `{"model": {"widths": [8]}}`, `{"data.batch_size": 64}`.

    With `stage`, the blocks that this stage needs must be in the file. Without `resolve`, references such as
    `${system.model.copies}` are left as they are, which is much faster.

    Raises:
        PlanError: no such file, a key that it does not have, or a missing one.
    """
    choices = {
        "system": system and f"{system}/{preset}",
        "dataset": dataset and f"{dataset}/{preset}",
        "trainer": trainer,
        "sweep": sweep,
        "sweep/machines": machines,
    }
    choices = {group: choice for group, choice in choices.items() if choice}
    block = "sweep" if sweep else "system"
    for group, choice in choices.items():
        folder = ROOT / "conf" / group
        if not (folder / f"{choice}.yaml").is_file():
            known = sorted(str(path.relative_to(folder).with_suffix("")) for path in folder.rglob("*.yaml"))
            raise PlanError(f"conf/{group}/{choice}.yaml does not exist{meant(choice, known)}")
    stamp = _stamp()
    try:
        _read(stamp, choices.items())
        composed = {
            group: _composed(stamp, group, choice, overrides if group == block else None, resolve)
            for group, choice in choices.items()
        }
    except PlanError:
        raise
    except Exception as error:  # Hydra and OmegaConf raise a family of errors; their text names file and key
        lines = ", ".join(f"{group}={choice}" for group, choice in choices.items())
        raise PlanError(f"conf/ for {lines}: {' '.join(str(error).split())}") from None
    if machines:
        composed["sweep"]["machines"] = composed.pop("sweep/machines")
    for group, tree in composed.items():
        _blocks(group, tree, FURTHER_BLOCKS.get(stage), f"conf/{group}/{choices[group]}.yaml")
    return composed


File = tuple[str, str]  # a group of `conf/` and the choice in it
_trees: dict[tuple[int, str, str], dict] = {}  # what Hydra makes of a file, before overrides
_resolved: dict[tuple[int, str, str, str], dict] = {}  # with overrides, without references


def _read(stamp: int, files: Iterable[File]) -> None:
    """Let Hydra compose the files that were not read yet, all in one call, because each call is slow."""
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir
    from omegaconf import OmegaConf

    if not (new := [file for file in files if (stamp, *file) not in _trees]):
        return
    lines = [f"+{group}@file{number}={choice}" for number, (group, choice) in enumerate(new)]
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        trees = OmegaConf.to_container(hydra_compose("config", overrides=lines))
    for number, file in enumerate(new):
        _trees[stamp, *file] = trees.get(f"file{number}", {})


def _composed(stamp: int, group: str, choice: str, overrides: dict | None, resolve: bool) -> dict:
    """A file with its overrides, cached for rows with the same ones."""
    from omegaconf import OmegaConf

    key = (stamp, group, choice, repr(overrides))
    if resolve and key in _resolved:
        return deepcopy(_resolved[key])
    tree = deepcopy(_trees[stamp, group, choice])
    if overrides:
        places = {name: (parent, key) for name, parent, key in _leaves(tree)}
        blocks = {name: (parent, key) for name, parent, key in _leaves(tree, inner=True)}
        for name, parent, leaf in _leaves(overrides):
            if name in blocks and parent[leaf] is None:  # such as `validate_every: null`
                places[name] = blocks[name]
            if name not in places or name.rpartition(".")[2].startswith("_"):
                raise PlanError(
                    f"overrides: {name!r} is no setting of conf/{group}/{choice}.yaml, which must have what an arm "
                    f"changes{meant(name, places)}"
                )
            target, last = places[name]
            target[last] = parent[leaf]
    if not resolve:
        return tree
    if "${" in (text := str(tree)) or "???" in text:  # a reference, or a value that must be given
        tree = OmegaConf.to_container(OmegaConf.create({group: tree}), resolve=True, throw_on_missing=True)[group]
    if "${oc.env" not in text:  # an environment variable may change
        _resolved[key] = deepcopy(tree)
    return tree


def _stamp() -> int:
    """A number that changes when a file of `conf/` does."""
    files = [file for folder, _, _ in os.walk(ROOT / "conf") for file in os.scandir(folder) if file.is_file()]
    return hash(tuple((file.path, file.stat().st_mtime_ns, file.stat().st_size) for file in files))


def _blocks(group: str, tree: object, further: str | None, where: str) -> None:
    """Check the structure of a file of `conf/`; its values are checked where they are used, see `settings`."""
    if not isinstance(tree, dict):
        raise PlanError(f"{where}: expected a mapping of keys to values; got {tree!r}")
    called = {"": tree} if group == "dataset" else {}
    if group == "system":
        required = (*SYSTEM_BLOCKS, *([further] if further else ()))
        try:
            check_keys(tree, required, (*required, *FURTHER_BLOCKS.values()), where)
        except ValueError as error:
            raise PlanError(str(error)) from None
        protocols = tree.get("downstream", {})
        if not isinstance(protocols, dict) or ("downstream" in tree and not protocols):
            raise PlanError(f"{where}: `downstream` must map protocols, such as `finetune`, to settings")
        recipes = {f"downstream.{name}": recipe for name, recipe in protocols.items()}
        for name, recipe in {"pretrain": tree["pretrain"], **recipes}.items():
            if not isinstance(recipe, dict):
                raise PlanError(f"{where}: `{name}` must map keys to values; got {recipe!r}")
        called = {name: tree[name] for name in CALLED_BLOCKS if name in tree}
        called |= {f"{name}.{part}": recipe.get(part) for name, recipe in recipes.items() for part in ("model", "data")}
    for name, block in called.items():
        if not isinstance(block, dict) or not isinstance(block.get("_target_"), str):
            raise PlanError(f"{where}: {name or 'the file'} has no `_target_`, expected the name of what it configures")
        module = block["_target_"].rpartition(".")[0].replace(".", "/")
        there = any((HERE / file).is_file() for file in (f"{module}.py", f"{module}/__init__.py"))
        if block["_target_"].startswith(CODE) and not there:  # `settings.bind` refuses other places
            raise PlanError(
                f"{where}: {name and f'{name}.'}_target_ is {block['_target_']!r}, but there is no file {module}.py; "
                "expected the dotted name of a class or function, as in `import`"
            )


def _leaves(tree: dict, prefix: str = "", *, inner: bool = False) -> Iterator[tuple[str, dict, Any]]:
    """Dotted name of each value, or of each mapping among them (`inner`), the mapping that holds it, its key there."""
    for key, value in tree.items():
        is_block = isinstance(value, dict) and bool(value)
        if is_block == inner:
            yield f"{prefix}{key}", tree, key
        if is_block:
            yield from _leaves(value, f"{prefix}{key}.", inner=inner)


def how_built(plan: Plan, row: Row) -> dict:
    """How the model of a pre-trained arm is built, for `predictors.load`.

    Trainings write it beside their weights, and evaluations copy it. So what answers with the weights comes from the
    settings that these were trained with.
    """
    system = compose(plan.preset, system=row.system, overrides=row.overrides)["system"]
    return {
        "runs": f"data/runs/{plan.preset}/{row.arm}/pretrain",
        "model": system["model"],
        "data": system["data"],
        "dataset": f"data/datasets/{row.dataset}/{plan.preset}",
    }


def downstream(system: str, preset: str) -> list[str]:
    """The protocols that the finetune stage runs an encoder through, in the order of the system's file."""
    return list(compose(preset, system=system)["system"].get("downstream", {}))


def _check_row(plan: Plan, stage: str, row: Row) -> None:
    """Check a row's file and its overrides. Overrides replace single values, so references stay valid.

    Raises:
        PlanError: the message of `compose`, with the name of the row.
    """
    try:
        sweep = "cached" if stage == "sweep" else ""
        compose(plan.preset, system=row.system, sweep=sweep, stage=stage)
        resolve = "${" in str(row.overrides)
        compose(plan.preset, system=row.system, sweep=sweep, overrides=row.overrides, stage=stage, resolve=resolve)
    except PlanError as error:
        raise PlanError(f"plans/{plan.preset}/{row.paper}/params.yaml: {stage}.{row.arm}: {error}") from None


def check(plan: Plan, papers: Iterable[str] = ()) -> None:
    """Compose every configuration that the plan needs, or that these papers need, and check own ideas.

    Raises:
        ValueError: the first problem found.
    """
    papers = set(papers) or set(plan.papers)
    for stem in sorted(papers):
        _check_idea(plan, stem)
    _read_all(plan, papers)
    for dataset, paper in plan.datasets.items():
        if paper in papers:
            compose(plan.preset, dataset=dataset)
    for stage in ("pretrain", "finetune", "evaluate", "sweep"):
        for row in getattr(plan, stage).values():
            if row.paper in papers:
                _check_row(plan, stage, row)
    compose(plan.preset, trainer=trainer_name())


def _read_all(plan: Plan, papers: Collection[str]) -> None:
    """Read the files of all rows at once. Problems are reported later, when the row is composed."""
    files = [("dataset", name) for name, paper in plan.datasets.items() if paper in papers]
    for stage in ("pretrain", "finetune", "evaluate", "sweep"):
        files += [("system", row.system) for row in getattr(plan, stage).values() if row.paper in papers]
    files = [(group, f"{name}/{plan.preset}") for group, name in dict.fromkeys(files)]
    files += [("sweep", "cached"), ("trainer", trainer_name())]
    with suppress(Exception):
        _read(_stamp(), [file for file in files if (ROOT / "conf" / "/".join(file)).with_suffix(".yaml").is_file()])


def _check_idea(plan: Plan, stem: str) -> None:
    """Check the claims of an own idea before anything of it runs.

    Raises:
        ValueError: a mistake in `idea.yaml`, an unknown paper, a claim with an arm that the idea does not evaluate, or
            code of the idea that cannot be imported.
    """
    from lightning_modules.metrics import claims

    file = ROOT / "ideas" / stem / "idea.yaml"
    if not file.is_file():
        return
    idea = claims.load_facts(claims.facts_file(ROOT, stem))
    papers = sorted(path.parent.name for path in (ROOT / "lightning_modules").glob("*/facts.yaml"))
    if idea.against not in papers:
        raise PlanError(f"{file.relative_to(ROOT)}: against is {idea.against!r}{meant(idea.against, papers)}")
    claims.check_plan(idea, [arm for arm, row in plan.evaluate.items() if row.paper == stem], plan.preset)
    rows = [row for stage in ("pretrain", "finetune", "evaluate") for row in getattr(plan, stage).values()]
    for system in dict.fromkeys(row.system for row in rows if row.paper == stem):
        tree = compose(plan.preset, system=system)["system"]
        for name, block, key in _leaves(tree):
            if key == "_target_" and block[key].startswith("ideas."):
                located(block[key], f"conf/system/{system}/{plan.preset}.yaml: {name.removesuffix('._target_')}")


def check_claims(plan: Plan) -> None:
    """Check that every claim to be judged names arms of its paper's plan.

    This is for `make check`, not for a stage: if only a part of a plan is run, the report says what is missing.

    Raises:
        ValueError: a claim names an arm that the paper's plan does not evaluate.
    """
    from lightning_modules.metrics import claims

    for stem in plan.papers:
        arms = [arm for arm, row in plan.evaluate.items() if row.paper == stem]
        claims.check_plan(claims.load_facts(claims.facts_file(ROOT, stem)), arms, plan.preset)


def trainer_name() -> str:
    """Name of a file in `conf/trainer/`, from `REPRISE_TRAINER`: the choice of a machine makes no stage stale."""
    return os.environ.get("REPRISE_TRAINER", "cpu")
