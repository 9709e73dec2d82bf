"""The manifests: a comment changes none of them, a changed line changes those of its users only."""

import pytest
import yaml

from lightning_modules.files import ROOT
from stages import sources
from stages.plan import PRESETS, PlanError


@pytest.fixture
def project(tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "ROOT", tmp_path)
    (tmp_path / "pack").mkdir()
    files = {
        "pack/__init__.py": "",
        "pack/layer.py": '"""Doc."""\n\nX = 1\n',
        "pack/one.py": "from pack.layer import X\n",
        "pack/two.py": "def later():\n    import pack.one\n",
        "pack/other.py": "import numpy\n",
    }
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    return tmp_path


def test_the_closure_follows_imports_inside_functions_and_the_packages_on_the_way(project):
    assert list(sources.closure([project / "pack/two.py"])) == [
        "pack/__init__.py",
        "pack/layer.py",
        "pack/one.py",
        "pack/two.py",
    ]


def test_comments_docstrings_and_layout_do_not_count_but_code_does(project):
    layer = project / "pack/layer.py"
    before = sources.closure([project / "pack/two.py"])
    layer.write_text('"""Another text."""\n# a comment\nX   =   1\n')
    assert sources.closure([project / "pack/two.py"]) == before
    layer.write_text("X = 2\n")
    changed = sources.closure([project / "pack/two.py"])
    assert {name for name in before if before[name] != changed[name]} == {"pack/layer.py"}


def test_other_files_do_not_count(project):
    before = sources.closure([project / "pack/one.py"])
    (project / "pack/other.py").write_text("Y = 3\n")
    assert sources.closure([project / "pack/one.py"]) == before


def test_targets_are_found_at_any_depth(project):
    tree = {"model": {"_target_": "pack.one.Thing", "inner": {"_target_": "pack.other.Thing"}}}
    found = {path.relative_to(project).as_posix() for path in sources.targets(tree)}
    assert found == {"pack/__init__.py", "pack/one.py", "pack/other.py"}


def test_comments_and_order_of_a_yaml_file_do_not_count_but_values_do(project):
    recipe = project / "recipe.yaml"
    recipe.write_text("lr: 0.1\nbetas: [0.9, 0.95]\n")
    before = sources.closure([recipe])
    recipe.write_text("# a comment\nbetas: [0.9, 0.95]    # of Adam\nlr: 0.1\n")
    assert sources.closure([recipe]) == before
    recipe.write_text("lr: 0.2\nbetas: [0.9, 0.95]\n")
    assert sources.closure([recipe]) != before


@pytest.fixture
def settings(tmp_path, monkeypatch):
    """A system and a data set that take values from shared files, one of which takes some from another."""
    monkeypatch.setattr(sources, "ROOT", tmp_path)
    files = {
        "shared/encoder/vit.yaml": "dim: 64\n",
        "shared/recipe/slow.yaml": "defaults: [/shared/recipe/any@_here_, _self_]\nlr: 0.1\n",
        "shared/recipe/any.yaml": "warmup: 0.1\n",
        "system/one/tiny.yaml": "defaults: [/shared/encoder/vit@model.encoder, /shared/recipe/slow@downstream.probe]",
        "system/two/tiny.yaml": "model: {dim: 64}\n",
    }
    for name, text in files.items():
        path = tmp_path / "conf" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return tmp_path / "conf"


def test_a_stage_has_the_shared_files_of_the_blocks_that_it_depends_on(settings):
    found = {
        stage: {path.stem for path in sources.shared(settings / "system/one/tiny.yaml", blocks)}
        for stage, blocks in sources.TRACKED.items()
    }
    assert found == {"pretrain": {"vit"}, "finetune": {"vit", "slow", "any"}, "evaluate": {"vit"}}
    assert not list(sources.shared(settings / "system/two/tiny.yaml"))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("/shared/encoder/vit", r"defaults has '/shared/encoder/vit', expected `/shared/<folder>/<name>@<block>`"),
        ("/system/two/tiny@model", "expected `/shared/"),
        ("{/shared/encoder@model: vit}", "expected `/shared/"),
        ("/shared/encoder/vti@model", "conf/shared/encoder/vti.yaml does not exist"),
    ],
)
def test_a_default_whose_users_are_not_known_is_refused(settings, line, message):
    (settings / "system/two/tiny.yaml").write_text(f"defaults:\n  - {line}\n  - _self_\n")
    with pytest.raises(PlanError, match=message):
        list(sources.shared(settings / "system/two/tiny.yaml"))


def test_what_a_stage_tracks_of_a_system_is_what_the_pipeline_says():
    stages = yaml.safe_load((ROOT / "plans/tiny/maskalign/dvc.yaml").read_text())["stages"]
    for stage, blocks in sources.TRACKED.items():
        tracked = [each for each in stages[stage]["do"]["params"] if "conf/system" in next(iter(each))]
        assert [set(*each.values()) for each in tracked] == [blocks]


@pytest.mark.parametrize("preset", PRESETS)
def test_a_shared_file_is_in_the_manifests_of_its_users_only(preset):
    found = sources.manifests(preset)
    for path in sorted((ROOT / "conf/shared").rglob("*.yaml")):
        name = f"/{path.relative_to(ROOT / 'conf').with_suffix('')}@"
        naming = {file.parent.name for file in (ROOT / "conf").glob(f"*/*/{preset}.yaml") if name in file.read_text()}
        assert {manifest.partition(".")[2] for manifest, roots in found.items() if path in roots} == naming
