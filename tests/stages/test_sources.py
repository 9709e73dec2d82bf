"""The manifests: a comment changes none of them, a changed line changes those of its users only."""

import pytest

from stages import sources


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
