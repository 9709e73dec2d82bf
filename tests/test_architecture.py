"""The house rules that a reader relies on, checked by parsing the code."""

import ast
import inspect
import re
import subprocess
from collections.abc import Iterable
from functools import cache
from pathlib import Path

import pytest
import yaml
from hydra.utils import get_object

from stages import sources
from stages.composing import compose
from stages.plan import PRESETS, load_plan

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "lightning_modules"
STEMS = sorted(path.parent.name for path in PACKAGE.glob("*/facts.yaml"))
# Who may import whom: a layer may import those before it.
HELPERS = {"files", "portable", "predictors", "processes", "rehearsal", "runs", "seed_store", "settings", "tracking"}
ORDER = [
    HELPERS,
    {"layers", "losses", "metrics", "datasets", "pretrained"},
    {"averaging", "base", "checkpoints", "history", "milestones", "training", "validation", "watching"},
    {"datamodules"},
    {"ensembling"},
    {"tasks", "sweeps", "video_tokens", "sequences", "vision_language"},
    set(STEMS),
    {"stages"},
]
ALWAYS_SHARED = {
    "metrics": "numbers of different papers must be comparable",
    "datasets": "a data set belongs to no paper",
}
ONE_USER = {  # modules of the shared folders that one paper uses, and why they stay there
    "datamodules/captioned.py": "MM-GEM trains on images with captions",
    "datamodules/video_texts.py": "HD-VILA, LF-VILA and VideoPoet train on videos with sentences",
    "datamodules/video_file_texts.py": "HD-VILA and LF-VILA read the same video files",
    "datamodules/annotated_videos.py": "LF-VILA shows videos with it, and HD-VILA's hybrid clips are built on it",
    "datamodules/video_clips.py": "MAGVIT and MAGVIT-v2 train on videos of their own choice with it",
    "datamodules/streamed.py": "MoViNets and ViT-BERT train on data larger than memory",
    "losses/contrastive.py": "HD-VILA, LF-VILA, MM-GEM and IMP train with it",
    "tasks/retrieval.py": "HD-VILA, LF-VILA, MM-GEM and IMP report retrieval",
    "tasks/classification.py": "MoViNets, ViT-BERT and IMP fine-tune and probe",
    "tasks/transfer.py": "MoViNets, ViT-BERT and IMP compare fine-tuned encoders",
    "sweeps/committees.py": "evaluates arms of MaskAlign and MoViNets, in the plan of Committees",
    "ensembling/committee_files.py": "written beside the cascades that it stores",
    "ensembling/classifier.py": "named by `Members.predictor`, so that no import of it is seen",
    "video_tokens/predictor.py": "MAGVIT's answers too; `predictor` names them, so that no import of it is seen",
    "layers/hub_vit.py": "MoViNets, ViT-BERT and IMP export their classifiers with it",
}


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


def dotted(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts)


def rank(name: str) -> int:
    return next(index for index, group in enumerate(ORDER) if name in group)


CODE = sorted(PACKAGE.rglob("*.py")) + sorted((ROOT / "stages").rglob("*.py"))


@pytest.mark.parametrize("path", CODE, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_go_one_way(path):
    mine = part(dotted(path))
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
        *(PACKAGE / "datasets").rglob("*.py"),
        *(ROOT / "stages").glob("*.py"),
        *(PACKAGE / f"{h}.py" for h in HELPERS),
        *(PACKAGE / "tracking" / f"{name}.py" for name in ("records", "mirror")),
    ]:
        if not path.is_file():
            continue
        top = {n.names[0].name if isinstance(n, ast.Import) else n.module for n in ast.parse(path.read_text()).body
               if isinstance(n, ast.Import | ast.ImportFrom)}  # fmt: skip
        heavy = {name for name in top if re.match(r"(torch|pytorch_lightning|transformers|mlflow)\b", name or "")}
        assert not heavy, f"{path} imports {heavy} at module level"


@pytest.mark.parametrize("stem", STEMS)
def test_a_paper_has_all_its_files(stem):
    assert (ROOT / f"conf/system/{stem}/tiny.yaml").is_file()
    assert list((ROOT / "tests" / stem).glob("test_*.py"))
    assert {path.name for path in (PACKAGE / stem).iterdir()} & {"module.py", "evaluation.py"}


def reached(roots: Iterable[Path], through_papers: bool) -> set[Path]:
    """The project files that `roots` import, directly or not."""
    found: set[Path] = set()
    todo = list(roots)
    while todo:
        path = todo.pop()
        if path in found or (not through_papers and part(dotted(path)) in STEMS):
            continue
        found.add(path)
        todo += sources.imported(path)
    return found


@cache
def configured(file: Path) -> list[Path]:
    """The code that a file of `conf/` names."""
    return list(sources.targets(yaml.safe_load(file.read_text())))


def users() -> dict[Path, set[str]]:
    """Who uses each project file: papers by their folders and systems, and what every paper runs through."""
    roots: dict[str, list[Path]] = {stem: list((PACKAGE / stem).glob("*.py")) for stem in STEMS}
    for preset in PRESETS:
        plan = load_plan(preset)
        for row in [*plan.pretrain.values(), *plan.finetune.values(), *plan.evaluate.values()]:
            if row.paper not in STEMS:  # an own idea
                continue
            started = row  # and what it starts from, which may be arms of another paper
            while started:
                roots[row.paper] += configured(ROOT / f"conf/system/{started.system}/{preset}.yaml")
                started = plan.pretrain.get(getattr(started, "start", None))
    found: dict[Path, set[str]] = {}
    for stem, files in roots.items():
        for path in reached(files, through_papers=True):
            found.setdefault(path, set()).add(stem)
    common = [*(ROOT / "stages").rglob("*.py"), PACKAGE / "tracking/mirror.py"]  # a process of its own
    for file in (ROOT / "conf/sweep").glob("*.yaml"):
        common += configured(file)
    for path in reached(common, through_papers=False):
        found.setdefault(path, set()).update(STEMS)
    return found


def test_what_is_shared_has_two_papers_as_users():
    """Code of one paper lies in its folder; it moves to a shared one when the second paper needs it."""
    used, single = users(), {}
    for path in sorted(PACKAGE.rglob("*.py")):
        folder = part(dotted(path))
        if path.name != "__init__.py" and folder not in {*STEMS, *ALWAYS_SHARED} and len(used.get(path, ())) < 2:
            single[path.relative_to(PACKAGE).as_posix()] = used.get(path, set())
    surplus = {name: stems for name, stems in single.items() if name not in ONE_USER}
    assert not surplus, "move these into their papers' folders"


@pytest.mark.parametrize("system", sorted({path.parent.name for path in (ROOT / "conf/system").glob("*/paper.yaml")}))
def test_presets_have_the_same_keys(system):
    """Two complete files, so that `diff` shows the scaling; one of them may leave out what has a default."""
    tiny, paper = (compose(preset, system=system)["system"] for preset in ("tiny", "paper"))
    assert tiny.keys() == paper.keys()
    assert tiny.get("downstream", {}).keys() == paper.get("downstream", {}).keys()
    for name in tiny.keys() - {"downstream", "pretrain"}:
        if tiny[name]["_target_"] == paper[name]["_target_"]:  # the data of the paper's size may need another module
            parameters = inspect.signature(get_object(tiny[name]["_target_"])).parameters
            for key in tiny[name].keys() ^ paper[name].keys():
                assert parameters[key].default is not inspect.Parameter.empty, f"{name}.{key}"
    if tiny["pretrain"]["epochs"] and paper["pretrain"]["epochs"]:
        required = get_object(tiny["model"]["_target_"]).recipe_form.__required_keys__
        assert not (tiny["pretrain"].keys() ^ paper["pretrain"].keys()) & required


def test_no_drawer_files():
    assert not [path for path in CODE if path.stem in {"utils", "common", "misc", "helpers"}]


def test_the_lock_pins_everything_and_nothing_that_breaks_torch():
    lock = (ROOT / "requirements.lock").read_text().splitlines()
    assert "torch==2.13.0" in lock
    for line in filter(None, lock):
        assert re.fullmatch(r"[\w.-]+(\[[\w,-]+\])?==\S+( ;.*)?", line), line
    names = {line.split("==")[0] for line in lock}
    assert not names & {"torchvision", "timm", "open-clip-torch", "lpips", "torch-fidelity"}


def test_commands_that_messages_tell_a_user_to_run_exist():
    """A `make` target is in the Makefile, and `dvc repro` is not given a stage, which would need its paper's file."""
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    told = []
    for folder in ("lightning_modules", "stages"):
        for path in (ROOT / folder).rglob("*.py"):
            told += re.findall(r"`(?:make|dvc repro) [^`]*`", path.read_text())
    assert len(told) > 20
    wrong = [command for command in told if command.startswith("`make") and not targets & {*command[6:-1].split()}]
    wrong += [command for command in told if re.match(r"`dvc repro [a-z]", command)]
    assert [command for command in wrong if "{" not in command] == []


def test_no_file_of_the_project_is_a_symbolic_link():
    """DVC refuses them in the revisions of git, and some disks and clones have none."""
    listed = subprocess.run(["git", "ls-files", "-s"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert listed and not [line for line in listed.splitlines() if line.startswith("120000")]
