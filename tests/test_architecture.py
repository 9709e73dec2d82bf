"""The house rules that a reader relies on, checked by parsing the code."""

import ast
import re
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "lightning_modules"
STEMS = sorted(path.stem for path in PACKAGE.glob("*.yaml"))
# Who may import whom: a layer may import those before it.
SHARED = {"layers", "losses", "metrics", "datasets"}
HELPERS = {"files", "processes", "runs", "seed_store", "settings", "tracking", "mirror"}
ORDER = [HELPERS, SHARED | {"pretrained"}, {"base", "run_logger", "training"}, {"tasks"}, set(STEMS), {"stages"}]


def imports(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def part(module: str) -> str | None:
    first, _, rest = module.partition(".")
    if first == "stages":
        return "stages"
    return rest.split(".")[0] or None if first == "lightning_modules" else None


def rank(name: str) -> int:
    return next(index for index, group in enumerate(ORDER) if name in group)


CODE = sorted(PACKAGE.rglob("*.py")) + sorted((ROOT / "stages").rglob("*.py"))


@pytest.mark.parametrize("path", CODE, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_go_one_way(path):
    mine = part(".".join(path.relative_to(ROOT).with_suffix("").parts))
    if path.name == "__init__.py":
        return
    for other in {part(name) for name in imports(path)} - {None, mine}:
        assert rank(other) <= rank(mine), f"{path} imports {other}"
        if mine in STEMS:
            assert other not in STEMS, f"{path}: a paper imports another paper; move what they share"


@pytest.mark.parametrize("path", sorted((ROOT / "stages").glob("*.py")), ids=lambda path: path.name)
def test_stages_hold_no_model_code(path):
    assert not {name for name in imports(path) if name == "torch.nn" or name.startswith("pytorch_lightning")}


def test_what_only_reads_and_reports_imports_no_torch():
    """Import time is part of the tiny budget: these files are reached without torch at module level."""
    for path in [
        *(PACKAGE / "datasets").glob("*.py"),
        *(ROOT / "stages").glob("*.py"),
        *(PACKAGE / f"{h}.py" for h in HELPERS),
    ]:
        if not path.is_file():
            continue
        top = {n.names[0].name if isinstance(n, ast.Import) else n.module for n in ast.parse(path.read_text()).body
               if isinstance(n, ast.Import | ast.ImportFrom)}  # fmt: skip
        heavy = {name for name in top if re.match(r"(torch|pytorch_lightning|transformers|mlflow)\b", name or "")}
        assert not heavy, f"{path} imports {heavy} at module level"


@pytest.mark.parametrize("stem", STEMS)
def test_a_paper_has_all_its_files(stem):
    for file in (f"lightning_modules/{stem}.py", f"tests/test_{stem}.py", f"conf/system/{stem}/tiny.yaml"):
        assert (ROOT / file).is_file(), file


@pytest.mark.parametrize("folder", sorted((ROOT / "conf/system").iterdir()), ids=lambda path: path.name)
def test_presets_have_the_same_keys(folder):
    """Two complete files, so that `diff` shows the scaling."""
    tiny, paper = (yaml.safe_load((folder / f"{preset}.yaml").read_text()) for preset in ("tiny", "paper"))
    assert tiny.keys() == paper.keys()
    for name, block in tiny.items():
        if block.get("_target_") == paper[name].get("_target_"):  # the data of the paper's size may need another module
            assert block.keys() == paper[name].keys(), name


def test_no_drawer_files():
    assert not [path for path in CODE if path.stem in {"utils", "common", "misc", "helpers"}]


def test_the_lock_pins_everything_and_nothing_that_breaks_torch():
    lock = (ROOT / "requirements.lock").read_text().splitlines()
    assert "torch==2.13.0" in lock
    for line in filter(None, lock):
        assert re.fullmatch(r"[\w.-]+(\[[\w,-]+\])?==\S+( ;.*)?", line), line
    names = {line.split("==")[0] for line in lock}
    assert not names & {"torchvision", "timm", "open-clip-torch", "lpips", "torch-fidelity"}
