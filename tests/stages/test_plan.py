"""What a user may write wrong in params.yaml and conf/, and the one clear line that answers it."""

import copy
import subprocess
import sys

import pytest
import yaml

from stages.plan import ROOT, PlanError, check, compose, load_plan

GOOD = yaml.safe_load((ROOT / "params.yaml").read_text())


def write(tmp_path, change):
    plan = copy.deepcopy(GOOD)
    change(plan)
    path = tmp_path / "params.yaml"
    path.write_text(yaml.safe_dump(plan))
    return path


def row(plan):
    return plan["pretrain"]["committees-digits"]


def sweep(plan):
    return plan["sweep"]["committees-digits"]


@pytest.mark.parametrize("path", ["params.yaml", "presets/paper/params.yaml"])
def test_the_plans_in_the_repository_hold(path):
    check(load_plan(path))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda p: p.update(sedes=[0]), "unknown key 'sedes'; did you mean 'seeds'"),
        (lambda p: p.pop("evaluate"), "the key 'evaluate' is missing"),
        (lambda p: p.update(preset="small"), "unknown preset 'small'"),
        (lambda p: p.update(seeds=[0, 1, 1]), "seed 1 is listed twice"),
        (lambda p: p.update(seeds=[]), "at least one whole number"),
        (lambda p: p.update(seeds=[True]), "whole number"),
        (lambda p: p.update(seeds=[-1]), "from 0 to 2147483647; got -1"),
        (lambda p: p.update(pretrain=[]), "`pretrain` must map names"),
        (lambda p: row(p).update(dataset="digit"), "is 'digit'; did you mean 'digits'"),
        (lambda p: row(p).update(sytem="x"), "unknown key 'sytem'; did you mean 'system'"),
        (lambda p: row(p).update(max_seeds=0), "max_seeds must be a positive whole number; got 0"),
        (lambda p: row(p).update(overrides=3), "overrides must map keys"),
        (
            lambda p: p["pretrain_from"]["maskalign"].update({"from": "maskalign-teach"}),
            "did you mean 'maskalign-teacher'",
        ),
        (
            lambda p: p["pretrain_from"]["maskalign-no_da"].update({"from": "maskalign-no_da"}),
            "pretrain_from: maskalign-no_da from maskalign-no_da is a circle",
        ),
        (lambda p: p["pretrain"].update(maskalign=row(p)), "maskalign is in `pretrain` and in `pretrain_from`"),
        (lambda p: p["finetune"]["maskalign-mnist"].update(max_seeds=5), "give both the same max_seeds"),
        (lambda p: p["finetune"]["maskalign-mnist"].update({"from": "maskalign-mae"}), "a comparison has an arm once"),
        (lambda p: p["evaluate"]["maskalign-mnist"].update(stage="finetunes"), "did you mean 'finetune'"),
        (lambda p: p["evaluate"]["maskalign-mnist"].update(runs="maskalign"), "did you mean 'maskalign-mnist'"),
        (lambda p: p["evaluate"]["committees-mnist"].update(runs="comittees-mnist"), "did you mean 'committees-mnist'"),
        (lambda p: p.pop("sweep"), "the key 'sweep' is missing"),
        (lambda p: sweep(p).update(runs="comittees-digits"), "sweep.committees-digits.runs .* 'committees-digits'"),
        (lambda p: sweep(p).update(trials=9), "sweep.committees-digits: unknown key 'trials'"),
    ],
)
def test_a_mistake_in_the_plan_is_named_with_the_way_out(tmp_path, change, message):
    with pytest.raises(PlanError, match=message):
        load_plan(write(tmp_path, change))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda p: row(p).update(system="comittees"), "did you mean 'committees/tiny'"),
        (lambda p: row(p).update(overrides={"model": {"width": [8]}}), "did you mean 'model.widths'"),
        (lambda p: row(p).update(overrides={"model._target_": "os.system"}), "is no setting"),
        (lambda p: p["datasets"].update(mnits={}), "did you mean 'mnist/tiny'"),
        (lambda p: sweep(p).update(overrides={"trails": 9}), "no setting of conf/sweep/cached.yaml; .* 'trials'"),
    ],
)
def test_a_mistake_in_what_the_plan_composes_is_named(tmp_path, change, message):
    with pytest.raises(PlanError, match=message):
        check(load_plan(write(tmp_path, change)))


def test_overrides_win_over_the_file():
    config = compose("tiny", system="committees", overrides={"model": {"copies": 3}})
    assert config["system"]["model"]["copies"] == 3


def test_broken_yaml_is_one_line(tmp_path):
    path = tmp_path / "params.yaml"
    path.write_text("preset: [tiny\n")
    with pytest.raises(PlanError, match=r"cannot be read as YAML: .*line"):
        load_plan(path)


def test_an_unknown_trainer_is_named(monkeypatch):
    monkeypatch.setenv("REPRISE_TRAINER", "gpus")
    with pytest.raises(PlanError, match="did you mean 'gpu'"):
        check(load_plan("params.yaml"))


def test_a_stage_ends_a_users_mistake_in_one_line_and_exit_code_1(tmp_path):
    path = write(tmp_path, lambda p: p.update(preset="small"))
    run = subprocess.run(
        [sys.executable, "-m", "stages.plan", "--plan", path], cwd=ROOT, capture_output=True, text=True
    )
    assert run.returncode == 1
    assert run.stdout == ""
    assert run.stderr.startswith("error: ") and run.stderr.count("\n") == 1 and "unknown preset 'small'" in run.stderr
