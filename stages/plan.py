"""The experiment plan: `params.yaml` joined with `conf/`, and checked before an output is touched."""

import argparse
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from lightning_modules.processes import die_with_parent
from lightning_modules.settings import meant

ROOT = Path(__file__).resolve().parents[1]
PRESETS = ("tiny", "paper")
PLAN_KEYS = (
    "preset",
    "plan",
    "root",
    "seeds",
    "datasets",
    "pretrain",
    "pretrain_from",
    "finetune",
    "evaluate",
    "sweep",
)
ROW_KEYS = {
    "pretrain": ("system", "dataset", "overrides"),
    "pretrain_from": ("system", "dataset", "from", "overrides"),
    "finetune": ("system", "dataset", "from", "overrides"),
    "evaluate": ("system", "stage", "runs", "overrides"),
    "sweep": ("system", "runs", "overrides"),
}
TRAINING = ("pretrain", "pretrain_from", "finetune")
SYSTEM_BLOCKS = ("model", "data", "pretrain")
FURTHER_BLOCKS = {"finetune": "downstream", "evaluate": "evaluate"}  # what a stage needs besides, of its own systems
CALLED_BLOCKS = ("model", "data", "evaluate")  # those with a `_target_`
NAME = re.compile(r"[A-Za-z0-9][\w.-]{0,99}", re.ASCII)  # names become folders, stages of DVC and names of runs


class PlanError(ValueError):
    """What a user wrote in `params.yaml` or `conf/` does not hold; the message names the value and the way out."""


@dataclass(frozen=True)
class Row:
    """One arm in one stage. `start` is the pre-trained arm whose weights it begins with, or empty."""

    arm: str
    system: str
    overrides: dict
    dataset: str = ""
    start: str = ""
    stage: str = "pretrain"
    runs: str = ""
    max_seeds: int | None = None

    @property
    def comparison(self) -> str:
        """What fine-tuned arms are compared in: all of one system on one data set."""
        return f"{self.system}-{self.dataset}"


@dataclass(frozen=True)
class Plan:
    """`params.yaml`, checked. `pretrain` holds the rows of `pretrain_from` too."""

    path: Path
    preset: str
    seeds: list[int]
    datasets: list[str]
    pretrain: dict[str, Row]
    finetune: dict[str, Row]
    evaluate: dict[str, Row]
    sweep: dict[str, Row]

    def row(self, stage: str, arm: str) -> Row:
        """The row of an arm.

        Raises:
            PlanError: the plan has no such arm in this stage.
        """
        rows = getattr(self, stage)
        if arm not in rows:
            raise PlanError(f"{self.path}: no arm {arm!r} in `{stage}`{meant(arm, rows)}")
        return rows[arm]

    def seeds_of(self, row: Row) -> list[int]:
        """The seeds that this arm trains: the plan's, or the first few of them."""
        return self.seeds[: row.max_seeds]

    def trained(self, row: Row) -> list[tuple[str, str]]:
        """(stage, arm) of every training whose results a row of `evaluate` reads, with those that they start from."""
        if row.stage == "pretrain":
            return self._with_upstream(row.runs)
        compared = [each for each in self.finetune.values() if each.comparison == row.runs]
        upstream = [pair for each in compared for pair in self._with_upstream(each.start)]
        protocols = downstream(row.system, self.preset)
        return list(dict.fromkeys(upstream)) + [(stage, each.arm) for each in compared for stage in protocols]

    def _with_upstream(self, arm: str) -> list[tuple[str, str]]:
        start = self.pretrain[arm].start
        return [*(self._with_upstream(start) if start else ()), ("pretrain", arm)]


def load_plan(path: str | Path = "params.yaml") -> Plan:
    """Read and check a plan.

    Raises:
        PlanError: an unknown or missing key, an unknown preset, a seed listed twice, an arm without its data or runs.
    """
    from omegaconf import OmegaConf

    path = Path(path)
    try:
        raw = OmegaConf.to_container(OmegaConf.load(path if path.is_absolute() else ROOT / path), resolve=True)
    except FileNotFoundError:
        raise PlanError(f"{path}: no such plan; expected params.yaml or presets/<preset>/params.yaml") from None
    except Exception as error:  # the YAML reader has a dozen of its own
        raise PlanError(f"{path} cannot be read as YAML: {' '.join(str(error).split())}") from None
    if not isinstance(raw, dict):
        raise PlanError(f"{path}: expected a mapping with the keys {', '.join(PLAN_KEYS)}; got {type(raw).__name__}")
    _keys(raw, PLAN_KEYS, (), str(path))
    if raw["preset"] not in PRESETS:
        raise PlanError(f"{path}: unknown preset {raw['preset']!r}{meant(raw['preset'], PRESETS)}")
    _place(raw["plan"], raw["root"], path)
    datasets = _mapping(raw, "datasets", path)
    for name, given in datasets.items():
        if given not in ({}, None):
            raise PlanError(f"{path}: datasets.{name} is {given!r}, expected {{}}: its settings lie in conf/dataset/")
    first, later, finetune, evaluate, sweep = (
        {arm: _row(stage, arm, row, path) for arm, row in _mapping(raw, stage, path).items()} for stage in ROW_KEYS
    )
    if twice := sorted(first.keys() & later.keys()):
        raise PlanError(f"{path}: {', '.join(twice)} is in `pretrain` and in `pretrain_from`; an arm is in one of them")
    pretrain = first | later
    plan = Plan(path, raw["preset"], _seeds(raw["seeds"], path), list(datasets), pretrain, finetune, evaluate, sweep)
    for stage, rows, upstream in (
        ("pretrain", first, {}),
        ("pretrain_from", later, pretrain),
        ("finetune", finetune, pretrain),
    ):
        for row in rows.values():
            _check_training(plan, stage, row, upstream)
    _check_chains(plan)
    _check_comparisons(plan)
    evaluate, sweep = (
        {arm: _with_dataset(plan, stage, row) for arm, row in rows.items()}
        for stage, rows in (("evaluate", evaluate), ("sweep", sweep))
    )
    return replace(plan, evaluate=evaluate, sweep=sweep)


def _check_training(plan: Plan, stage: str, row: Row, upstream: dict[str, Row]) -> None:
    where = f"{plan.path}: {stage}.{row.arm}"
    if row.dataset not in plan.datasets:
        raise PlanError(f"{where}.dataset is {row.dataset!r}{meant(row.dataset, plan.datasets)}")
    if stage == "pretrain":
        return
    if row.start not in upstream:
        raise PlanError(f"{where}.from is {row.start!r}{meant(row.start, upstream)}")
    seeds, available = plan.seeds_of(row), plan.seeds_of(upstream[row.start])
    if len(available) > 1 and not set(seeds) <= set(available):
        raise PlanError(
            f"{where} trains the seeds {seeds}, but {row.start} has {available}: give both the same max_seeds, or "
            f"{row.start} a single seed that serves all"
        )


def _check_chains(plan: Plan) -> None:
    for arm, row in plan.pretrain.items():
        chain = [arm]
        while row.start:
            if row.start in chain:
                raise PlanError(f"{plan.path}: pretrain_from: {' from '.join([*chain, row.start])} is a circle")
            chain.append(row.start)
            row = plan.pretrain[row.start]


def _check_comparisons(plan: Plan) -> None:
    seen: dict[tuple[str, str], str] = {}
    for row in plan.finetune.values():
        other = seen.setdefault((row.comparison, row.start), row.arm)
        if other != row.arm:
            raise PlanError(
                f"{plan.path}: finetune.{row.arm} and finetune.{other} have the same system, dataset and `from`; "
                "a comparison has an arm once"
            )


def _with_dataset(plan: Plan, stage: str, row: Row) -> Row:
    """A row that measures trained runs, with the data set of these."""
    known = {"pretrain": plan.pretrain, "finetune": {each.comparison: each for each in plan.finetune.values()}}
    where = f"{plan.path}: {stage}.{row.arm}"
    if row.stage not in known:
        raise PlanError(f"{where}.stage is {row.stage!r}{meant(row.stage, known)}")
    if row.runs not in known[row.stage]:
        raise PlanError(f"{where}.runs is {row.runs!r}{meant(row.runs, known[row.stage])}")
    return replace(row, dataset=known[row.stage][row.runs].dataset)


def _keys(given: dict, required: Iterable[str], optional: Iterable[str], where: str) -> None:
    for key in given:
        if key not in {*required, *optional}:
            raise PlanError(f"{where}: unknown key {key!r}{meant(key, [*required, *optional])}")
    for key in required:
        if key not in given:
            raise PlanError(f"{where}: the key {key!r} is missing; expected {', '.join(required)}")


def _place(plan: object, root: object, path: Path) -> None:
    """Hold what DVC is told about the plan's place against where it lies."""
    if not isinstance(plan, str) or not (ROOT / plan).is_file():
        raise PlanError(f"{path}: `plan` is {plan!r}, expected this file's path from the root, such as params.yaml")
    if not isinstance(root, str) or ((ROOT / plan).parent / root).resolve() != ROOT.resolve():
        raise PlanError(f"{path}: `root` is {root!r}, expected the way from {plan}'s folder to the root: . or ../..")


def _mapping(raw: dict, key: str, path: Path) -> dict:
    if not isinstance(raw[key], dict):
        raise PlanError(f"{path}: `{key}` must map names to settings; got {raw[key]!r}")
    for name in raw[key]:
        _name(name, f"{path}: a key of `{key}`")
    return raw[key]


def _name(value: object, where: str) -> None:
    if not isinstance(value, str) or not NAME.fullmatch(value):
        raise PlanError(f"{where} is {value!r}, expected a name of letters, digits, `_`, `.` and `-`")


def _row(stage: str, arm: str, row: object, path: Path) -> Row:
    where = f"{path}: {stage}.{arm}"
    if not isinstance(row, dict):
        raise PlanError(f"{where} must have the keys {', '.join(ROW_KEYS[stage])}; got {row!r}")
    _keys(row, ROW_KEYS[stage], ("max_seeds",) if stage in TRAINING else (), where)
    for key in ROW_KEYS[stage][:-1]:
        _name(row[key], f"{where}.{key}")
    most = row.get("max_seeds")
    if most is not None and (not isinstance(most, int) or isinstance(most, bool) or most < 1):
        raise PlanError(f"{where}.max_seeds must be a positive whole number; got {most!r}")
    if not isinstance(row["overrides"], dict):
        raise PlanError(f"{where}.overrides must map keys of conf/system to values; got {row['overrides']!r}")
    fields = {"start" if key == "from" else key: value for key, value in row.items()}
    return Row(arm=arm, **fields)


def _seeds(seeds: object, path: Path) -> list[int]:
    if not isinstance(seeds, list) or not seeds:
        raise PlanError(f"{path}: seeds must be a list with at least one whole number; got {seeds!r}")
    for seed in seeds:
        if not isinstance(seed, int) or isinstance(seed, bool) or not 0 <= seed < 2**31:
            raise PlanError(f"{path}: a seed must be a whole number from 0 to 2147483647; got {seed!r}")
        if seeds.count(seed) > 1:
            raise PlanError(
                f"{path}: seed {seed} is listed twice; a seed counts once in an interval, so list each once"
            )
    return seeds


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
) -> dict:
    """The resolved configuration of one stage: any of the groups of `conf/`.

    `overrides` are keys of the sweep file if there is one, else of the system file, nested or dotted:
    `{"model": {"widths": [8]}}`, `{"data.batch_size": 64}`.

    `stage` is the one that it is for, so that what this stage needs of a system must be there.

    Raises:
        PlanError: no such file, a key that it does not have, or a missing one.
    """
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir
    from omegaconf import OmegaConf

    choices = {
        "system": system and f"{system}/{preset}",
        "dataset": dataset and f"{dataset}/{preset}",
        "trainer": trainer,
        "sweep": sweep,
        "sweep/machines": machines,
    }
    block = "sweep" if sweep else "system"
    lines = [f"{group}={choice}" for group, choice in choices.items() if choice]
    for group, choice in choices.items():
        folder = ROOT / "conf" / group
        if choice and not (folder / f"{choice}.yaml").is_file():
            known = sorted(str(path.relative_to(folder).with_suffix("")) for path in folder.rglob("*.yaml"))
            raise PlanError(f"conf/{group}/{choice}.yaml does not exist{meant(choice, known)}")
    try:
        with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
            config = hydra_compose("config", overrides=lines)
        known = [key for key, _ in _leaves(OmegaConf.to_container(config).get(block) or {})]
        for key, value in _leaves(overrides or {}):
            if key not in known or key.rpartition(".")[2].startswith("_"):
                raise PlanError(
                    f"overrides: {key!r} is no setting of conf/{block}/{choices[block]}.yaml{meant(key, known)}"
                )
            OmegaConf.update(config[block], key, value, merge=False)
        composed = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    except PlanError:
        raise
    except Exception as error:  # Hydra and OmegaConf raise a family of errors; their text names file and key
        raise PlanError(f"conf/ for {', '.join(lines)}: {' '.join(str(error).split())}") from None
    for group, choice in choices.items():
        if choice and group in composed:  # the settings of machines are a part of those of the sweep
            _blocks(group, composed[group], FURTHER_BLOCKS.get(stage), f"conf/{group}/{choice}.yaml")
    return composed


def _blocks(group: str, tree: object, further: str | None, where: str) -> None:
    """Check the form of a file of `conf/`; its values are checked where they are used, see `settings`."""
    if not isinstance(tree, dict):
        raise PlanError(f"{where}: expected a mapping of keys to values; got {tree!r}")
    called = {"": tree} if group == "dataset" else {}
    if group == "system":
        _keys(tree, (*SYSTEM_BLOCKS, *([further] if further else ())), FURTHER_BLOCKS.values(), where)
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


def _leaves(tree: dict, prefix: str = "") -> Iterator[tuple[str, object]]:
    for key, value in tree.items():
        if isinstance(value, dict) and value:
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def downstream(system: str, preset: str) -> list[str]:
    """The protocols that the finetune stage runs an encoder through, in the order of the system's file."""
    from omegaconf import OmegaConf

    return list(OmegaConf.load(ROOT / "conf/system" / system / f"{preset}.yaml").get("downstream", {}))


def check(plan: Plan) -> None:
    """Compose every configuration that the plan needs.

    Raises:
        PlanError: the first thing that does not hold.
    """
    for dataset in plan.datasets:
        compose(plan.preset, dataset=dataset)
    for stage in ("pretrain", "finetune", "evaluate", "sweep"):
        for row in getattr(plan, stage).values():
            try:
                sweep = "cached" if stage == "sweep" else ""
                compose(plan.preset, system=row.system, sweep=sweep, overrides=row.overrides, stage=stage)
            except PlanError as error:
                raise PlanError(f"{plan.path}: {stage}.{row.arm}: {error}") from None
    compose(plan.preset, trainer=trainer_name())


def check_claims(plan: Plan) -> None:
    """Check that every claim to be judged names arms of the plan.

    For `make check`, not for a stage: who runs a part of a plan is told in the report what is missing.

    Raises:
        ValueError: a claim names an arm that the plan does not evaluate.
    """
    from lightning_modules.metrics import claims

    for stem in sorted({row.system for row in plan.evaluate.values()}):
        facts = claims.load_facts(ROOT / "lightning_modules" / stem / "facts.yaml")
        claims.check_plan(facts, plan.evaluate, plan.preset)


def main() -> None:
    """What `make check-plan` runs."""
    plan = load_plan(stage_arguments().plan)
    check(plan)
    check_claims(plan)


def trainer_name() -> str:
    """Name of the machine's settings in `conf/trainer/`, chosen by the environment so that it makes no stage stale."""
    return os.environ.get("REPRISE_TRAINER", "cpu")


def stage_arguments(*names: str) -> argparse.Namespace:
    """Command line of a stage: the given names, then `--plan`."""
    parser = argparse.ArgumentParser(description=sys.modules["__main__"].__doc__)
    for name in names:
        parser.add_argument(name)
    parser.add_argument("--plan", default="params.yaml", help="params.yaml (default) or presets/paper/params.yaml")
    return parser.parse_args()


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
        sys.exit("interrupted: the same command goes on from here")


if __name__ == "__main__":
    run_stage(main)
