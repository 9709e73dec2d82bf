"""What a user may write wrong in plans/ and conf/, the one clear line that answers it, and what all plans share."""

import copy
import shutil
from pathlib import Path

import pytest
import yaml

from lightning_modules.files import ROOT
from stages import composing
from stages.composing import check, compose
from stages.plan import PRESETS, PlanError, load_plan
from tests.pipeline import Copy

SHARED = yaml.safe_load((ROOT / "params.yaml").read_text())
GOOD = {path.parent.name: yaml.safe_load(path.read_text()) for path in (ROOT / "plans/tiny").glob("*/params.yaml")}


def write(root: Path, change=lambda shared, papers: None) -> Path:
    """A root with the plans of the tiny preset, changed."""
    shared, papers = copy.deepcopy(SHARED), copy.deepcopy(GOOD)
    change(shared, papers)
    root.mkdir(exist_ok=True)
    (root / "params.yaml").write_text(yaml.safe_dump(shared))
    for stem, plan in papers.items():
        folder = root / "plans/tiny" / stem
        folder.mkdir(parents=True)
        (folder / "params.yaml").write_text(plan if isinstance(plan, str) else yaml.safe_dump(plan))
    return root


def in_shared(**changed):
    return lambda shared, papers: shared.update(changed)


def in_paper(stem, key, **changed):
    """Change keys of a row (`pretrain/committees-digits`), of a stage, or of the whole (an empty key)."""

    def change(shared, papers):
        tree = papers[stem]
        for part in filter(None, key.split("/")):
            tree = tree[part]
        tree.update({{"start": "from"}.get(name, name): value for name, value in changed.items()})

    return change


def without(stem, key):
    return lambda shared, papers: papers[stem].pop(key)


@pytest.mark.parametrize(
    ("preset", "stem"), [(preset, stem) for preset in PRESETS for stem in load_plan(preset).papers]
)
def test_the_plans_in_the_repository_hold(preset, stem):
    check(load_plan(preset), [stem])


def test_every_paper_has_the_same_stages():
    """A paper differs in its params.yaml only; DVC reads no links in git revisions, so these are copies."""
    files = sorted((ROOT / "plans").glob("*/*/dvc.yaml"))
    assert len(files) >= 2 * 5 and not any(path.is_symlink() for path in files)
    assert len({path.read_bytes() for path in files}) == 1
    tiny, paper = ((ROOT / name).read_text().splitlines() for name in ("dvc.yaml", "plans/paper/dvc.yaml"))
    assert [pair for pair in zip(tiny[1:], paper[1:], strict=True) if pair[0] != pair[1]] == [
        ("  - preset: tiny", "  - preset: paper"),
        ("    root: .", "    root: ../.."),
    ]


def test_an_arm_trains_the_first_seeds_and_at_least_so_many_as_are_asked_for(tmp_path):
    plan = load_plan("tiny", write(tmp_path / "a"))
    seeds = {arm: plan.seeds_of(plan.pretrain[arm]) for arm in ("committees-mnist", "maskalign", "maskalign-teacher")}
    assert seeds == {"committees-mnist": [0, 1, 2, 3, 4], "maskalign": [0, 1, 2, 3, 4], "maskalign-teacher": [0]}
    plan = load_plan("tiny", write(tmp_path / "b", in_shared(at_least=7)))
    assert [plan.seeds_of(plan.pretrain[arm]) for arm in seeds] == [[0, 1, 2, 3, 4, 5, 6], [0, 1, 2, 3, 4, 5, 6], [0]]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (in_shared(sedes=[0]), "params.yaml: sedes: unknown key; did you mean 'seeds'"),
        (without("maskalign", "evaluate"), "plans/tiny/maskalign/params.yaml: evaluate: missing"),
        (in_paper("maskalign", "", preset="small"), r"preset is 'small', expected 'tiny' or 'paper'"),
        (in_paper("maskalign", "", preset="paper"), "preset is 'paper', expected 'tiny', the name of its folder"),
        (in_paper("maskalign", "", paper="mask"), "paper is 'mask', expected 'maskalign', the name of its folder"),
        (in_shared(seeds=[0, 1, 1]), "seed 1 is listed twice"),
        (in_shared(seeds=[]), "at least 1 item"),
        (in_shared(seeds=[True]), "expected a valid integer"),
        (in_shared(seeds=[-1]), "seeds.0 is -1, expected greater than or equal to 0"),
        (in_shared(at_least=99), "at_least is 99, but `seeds` lists 10"),
        (
            in_paper("committees", "", pretrain=[]),
            "committees/params.yaml: pretrain is .*, expected a valid dictionary",
        ),
        (in_paper("committees", "", datasets=["digits", 3]), r"datasets.1 is 3, expected a valid string"),
        (in_paper("maskalign", "", datasets=["digits"]), "data set digits is prepared by committees, too"),
        (in_paper("committees", "pretrain/committees-digits", dataset="digit"), "is 'digit'; did you mean 'digits'"),
        (in_paper("committees", "pretrain/committees-digits", sytem="x"), "sytem: unknown key; did you mean 'system'"),
        (in_paper("committees", "pretrain/committees-digits", max_seeds=0), "max_seeds is 0, expected greater than"),
        (in_paper("committees", "pretrain/committees-digits", overrides=3), "overrides is 3, expected a valid diction"),
        (
            in_paper("committees", "pretrain/committees-digits", system="../x"),
            "system is '../x', expected a name of letters",
        ),
        (in_paper("committees", "pretrain", **{"..": {}}), "pretrain... is no possible key, expected a name"),
        (in_paper("maskalign", "pretrain_from/maskalign", start="maskalign-teach"), "did you mean 'maskalign-teacher'"),
        (
            in_paper("maskalign", "pretrain_from/maskalign-no_da", start="maskalign-no_da"),
            "pretrain_from.maskalign-no_da: maskalign-no_da from maskalign-no_da is a circle",
        ),
        (
            in_paper("maskalign", "pretrain", maskalign={"system": "classifier", "dataset": "digits"}),
            "maskalign is in `pretrain` and in `pretrain_from`",
        ),
        (
            in_paper("maskalign", "pretrain", **{"committees-digits": {"system": "classifier", "dataset": "digits"}}),
            "pretrain.committees-digits is an arm of plans/tiny/committees, too",
        ),
        (in_paper("maskalign", "finetune/maskalign-mnist", max_seeds=6), "give both the same max_seeds"),
        (in_paper("maskalign", "finetune/maskalign-mnist", start="maskalign-mae"), "a comparison has an arm once"),
        (
            in_paper(
                "committees",
                "finetune",
                mine={"system": "maskalign", "dataset": "world_graded", "from": "maskalign-mae", "max_seeds": 5},
            ),
            "are both in the comparison maskalign-world_graded, so each would change the results of the other",
        ),
        (in_paper("maskalign", "evaluate/maskalign-mnist", stage="finetunes"), "stage is 'finetunes', expected 'pretr"),
        (in_paper("maskalign", "evaluate/maskalign-mnist", runs="maskalign"), "did you mean 'maskalign-mnist'"),
        (
            in_paper("committees", "evaluate/committees-mnist", runs="comittees-mnist"),
            "did you mean 'committees-mnist'",
        ),
        (without("committees", "sweep"), "sweep: missing"),
        (in_paper("committees", "sweep/committees-digits", runs="comittees-digits"), "runs is .* 'committees-digits'"),
        (in_paper("committees", "sweep/committees-digits", trials=9), "sweep.committees-digits.trials: unknown key"),
    ],
)
def test_a_mistake_in_a_plan_is_named_with_the_way_out(tmp_path, change, message):
    with pytest.raises(PlanError, match=message):
        load_plan("tiny", write(tmp_path, change))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (in_paper("committees", "pretrain/committees-digits", system="comittees"), "did you mean 'committees/tiny'"),
        (
            in_paper("committees", "pretrain/committees-digits", overrides={"model": {"width": [8]}}),
            "plans/tiny/committees/params.yaml: pretrain.committees-digits: .* did you mean 'model.widths'",
        ),
        (
            in_paper("committees", "pretrain/committees-digits", overrides={"model._target_": "os.system"}),
            "is no setting",
        ),
        (in_paper("committees", "", datasets=["digits", "mnist", "mnits"]), "did you mean 'mnist/tiny'"),
        (
            in_paper("committees", "sweep/committees-digits", overrides={"trails": 9}),
            "no setting of conf/sweep/cached.yaml.* 'trials'",
        ),
    ],
)
def test_a_mistake_in_what_the_plan_composes_is_named(tmp_path, change, message):
    with pytest.raises(PlanError, match=message):
        check(load_plan("tiny", write(tmp_path, change)), ["committees"])


def test_overrides_win_over_the_file_and_change_no_other_row():
    config = compose("tiny", system="committees", overrides={"model": {"copies": 3}})
    assert config["system"]["model"]["copies"] == 3
    assert compose("tiny", system="committees")["system"]["model"]["copies"] != 3


def test_null_takes_the_place_of_several_settings_and_nothing_else_does():
    recipe = compose("tiny", system="maskalign", overrides={"pretrain": {"validate_every": None}})["system"]["pretrain"]
    assert recipe["validate_every"] is None
    assert compose("tiny", system="maskalign")["system"]["pretrain"]["validate_every"] == {"epochs": 1}
    for overrides in ({"pretrain.validate_every": 3}, {"pretrain.keep_every": None}, {"pretrain._target_": None}):
        with pytest.raises(PlanError, match=r"is no setting of conf/system/maskalign/tiny.yaml"):
            compose("tiny", system="maskalign", overrides=overrides)


def test_shared_settings_come_first_then_those_of_the_file_then_the_arm(tmp_path, monkeypatch):
    shutil.copytree(ROOT / "conf", tmp_path / "conf")
    monkeypatch.setattr(composing, "ROOT", tmp_path)
    (tmp_path / "conf/shared/recipe/mae_pretraining.yaml").write_text(
        "optimizer: adamw\nweight_decay: 0.7\nmin_lr: 0.5\n"
    )
    recipe = compose("tiny", system="maskalign", overrides={"pretrain.weight_decay": 0.9})["system"]["pretrain"]
    assert (recipe["optimizer"], recipe["min_lr"], recipe["weight_decay"]) == ("adamw", 2.5e-5, 0.9)


def test_broken_yaml_is_one_line(tmp_path):
    root = write(tmp_path, lambda shared, papers: papers.update(committees="preset: [tiny\n"))
    with pytest.raises(PlanError, match=r"plans/tiny/committees/params.yaml cannot be read as YAML: .*line"):
        load_plan("tiny", root)


def test_numbers_are_read_as_hydra_reads_them(tmp_path):
    change = in_paper("committees", "pretrain/committees-digits", overrides={"pretrain.lr": "number"})
    path = write(tmp_path, change) / "plans/tiny/committees/params.yaml"
    path.write_text(path.read_text().replace("number", "1e-4"))
    assert load_plan("tiny", tmp_path).pretrain["committees-digits"].overrides == {"pretrain.lr": 1e-4}


def test_an_unknown_trainer_is_named(monkeypatch):
    monkeypatch.setenv("REPRISE_TRAINER", "gpus")
    with pytest.raises(PlanError, match="did you mean 'gpu'"):
        check(load_plan("tiny"), ["committees"])


def test_a_stage_ends_a_users_mistake_in_one_line_and_exit_code_1(tmp_path):
    copy = Copy(tmp_path)
    path = copy.folder / "params.yaml"
    path.write_text(path.read_text().replace("seeds", "sedes"))
    run = copy.python("-m", "stages.check", check=False)
    assert run.returncode == 1
    assert run.stdout == ""
    assert run.stderr.startswith("error: ") and run.stderr.count("\n") == 1 and "did you mean 'seeds'" in run.stderr
