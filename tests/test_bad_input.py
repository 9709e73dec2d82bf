"""What a user, a disk or an attacker may do wrong, and the one line that answers it. Where each item is tested:

unknown key, misspelt arm, unknown preset, seed listed twice    test_plan.py; values and form of `conf/` here
a claim that names a missing arm                                metrics/test_claims.py; that `make check` says it: here
members with other classes or samples, NaN, empty validation    tasks/test_ensembling.py; rows and classes of data: here
damaged Parquet shard, cached logits                            datasets/test_storage.py, tasks/test_ensembling.py
damaged weights and checkpoint, a checkpoint with code in it    here
disk full while writing                                         here; of a run record: test_tracking.py
port of the UI taken                                            here
anything at all in `params.yaml` and `conf/`                    the fuzz test here
"""

import copy
import shutil
import sys

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lightning_modules import training
from lightning_modules.datasets import digits
from stages import evaluate, plan, prepare, pretrain, sources
from stages.plan import ROOT

SYSTEM = "conf/system/committees/tiny.yaml"
FILES = ("params.yaml", SYSTEM, "conf/dataset/digits/tiny.yaml", "conf/trainer/cpu.yaml")


def small_plan() -> dict:
    """One arm, one seed."""
    given = yaml.safe_load((ROOT / "params.yaml").read_text())
    given |= {"seeds": [0], "datasets": {"digits": {}}}
    for stage in ("pretrain", "evaluate"):
        given[stage] = {"committees-digits": given[stage]["committees-digits"]}
    given["pretrain"]["committees-digits"]["overrides"] = {"data": {"batch_size": 30}}
    return given


def small_system() -> dict:
    """The tiny preset at a size that trains within a second."""
    system = yaml.safe_load((ROOT / SYSTEM).read_text())
    system["model"] |= {"widths": [4, 6, 8], "copies": 2}
    for part in system["data"]["splits"].values():
        part["rows"] = 60
    system["pretrain"] |= {"epochs": 1}
    system["evaluate"] |= {"pair": ["mlp-h4", "mlp-h8"], "export": "mlp-h6", "edges": {"3": 4}}
    return system


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A root with `conf/`, the digits and nothing else, in which the stages run within this process."""
    root = tmp_path_factory.mktemp("project")
    shutil.copytree(ROOT / "conf", root / "conf")
    digits.prepare(root / "data/datasets/digits/tiny")
    (root / "data/sources/tiny").mkdir(parents=True)
    (root / "data/sources/tiny/pretrain.committees.json").write_text("{}")
    with pytest.MonkeyPatch.context() as patch:
        for module in (plan, prepare, pretrain, evaluate, sources, training):
            patch.setattr(module, "ROOT", root)
        patch.setenv("DVC_ROOT", str(root))
        patch.setenv("REPRISE_WORKERS", "1")
        patch.chdir(root)
        write(root, {})
        yield root


def write(root, changed: dict) -> None:
    """Put the sound files in place, but for those given as trees or as text."""
    sound = {name: yaml.safe_load((ROOT / name).read_text()) for name in FILES}
    for name, tree in (sound | {"params.yaml": small_plan(), SYSTEM: small_system()} | changed).items():
        (root / name).write_text(tree if isinstance(tree, str) else yaml.safe_dump(tree))


def run_all() -> None:
    """What `make repro` does with an arm, without processes."""
    plan.check(plan.load_plan())
    for stage, *arguments in ((prepare, "digits"), (pretrain, "committees-digits"), (evaluate, "committees-digits")):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "argv", ["stage", *arguments])
            stage.main()


NUMBERS = [True, -1, 0, 1, 10**12, 0.5, -0.5, 1e30, float("nan"), float("inf")]
WORDS = ["", "x", "../x", "${x}", "${oc.env:X}", "none"]
VALUES = st.sampled_from([None, *NUMBERS, *WORDS, [], [1], ["x", "x"], [[]], {}, {"x": 1}, {"_target_": "os.system"}])


def places(tree, at=()):
    """The way to every value of a tree."""
    for key, value in tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ():
        yield (*at, key)
        yield from places(value, (*at, key))


@st.composite
def mutations(draw) -> dict:
    """One file with one mistake: a value, a key, a letter or the end of the text."""
    name = draw(st.sampled_from([*FILES, SYSTEM, SYSTEM]))
    sound = {"params.yaml": small_plan(), SYSTEM: small_system()}
    tree = copy.deepcopy(sound.get(name) or yaml.safe_load((ROOT / name).read_text()))
    *way, last = draw(st.sampled_from(list(places(tree))))
    parent = tree
    for key in way:
        parent = parent[key]
    kind = draw(st.sampled_from(["value", "value", "value", "drop", "add", "misspell", "letter", "cut"]))
    if kind == "value":
        parent[last] = draw(VALUES)
    elif kind == "drop":
        del parent[last]
    elif kind in ("add", "misspell") and isinstance(parent, dict):
        parent[f"{last}x"] = parent.pop(last) if kind == "misspell" else draw(VALUES)
    text = yaml.safe_dump(tree)
    at = draw(st.integers(0, len(text) - 1))
    if kind == "letter":
        text = text[:at] + draw(st.sampled_from("x0-:{[&*!%\t\n\0é'")) + text[at + 1 :]
    return {name: text[:at] if kind == "cut" else text}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
@given(changed=mutations())
def test_whatever_is_written_into_the_files_ends_well_or_in_one_line(project, changed):
    write(project, changed)
    try:
        run_all()
    except (ValueError, OSError) as error:  # what `run_stage` ends in one line
        assert str(error) and "\n" not in str(error), str(error)
