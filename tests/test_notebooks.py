"""The notebooks run from top to bottom on a finished pipeline, and are stored without what they printed.

Those of the families of papers run here on stand-ins of results: networks with drawn weights, and galleries and figures
with the names that the notebooks ask for. `make test-guides` runs them on the results of this project, if it has them.
"""

import json
import re
import shutil
from dataclasses import asdict

import nbformat
import numpy as np
import pytest
from hydra.utils import get_method
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from safetensors.torch import save_file

from lightning_modules import rehearsal, settings
from lightning_modules.files import write_json
from lightning_modules.runs import Exhibit, Figure, Gallery, Picture, Series
from stages.composing import compose, how_built
from stages.evaluate import evaluated
from stages.page import notebook
from stages.plan import load_plan
from tests.pipeline import ROOT

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
FAMILIES = [path for path in NOTEBOOKS if "notebook.needed(" in path.read_text()]
ROWS = 64  # of each split of a data set, for stand-ins
ARM = r"([\w-]+/[\w-]+)"


def named(path):
    return path.name


def code(path):
    return "\n".join("".join(cell["source"]) for cell in json.loads(path.read_text())["cells"])


def executed(path, folder):
    """The notebook after it has run in a project."""
    book = nbformat.read(path, as_version=4)
    place = {"metadata": {"path": str(folder / "notebooks")}}
    NotebookClient(book, timeout=300, kernel_name="python3", resources=place).execute()
    assert all(cell.execution_count for cell in book.cells if cell.cell_type == "code")
    return book


def needed(path):
    """The arms that a notebook says it needs."""
    return re.findall(f'"{ARM}"', re.search(r"notebook\.needed\((.*?)\)", code(path), re.DOTALL)[1])


@pytest.mark.parametrize("path", NOTEBOOKS, ids=named)
def test_stored_without_outputs(path):
    cells = [cell for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == "code"]
    assert not [cell for cell in cells if cell["outputs"] or cell["execution_count"]]
    assert not [cell for cell in cells for line in cell["source"] if line.lstrip().startswith(("def ", "class "))]


def test_the_tour_has_ten_cells():
    cells = json.loads((ROOT / "notebooks/00_tour.ipynb").read_text())["cells"]
    assert sum(cell["cell_type"] == "code" for cell in cells) == 10


@pytest.mark.parametrize("path", FAMILIES, ids=named)
def test_what_a_notebook_asks_for_exists(path):
    """The papers that it says to run, the arms it shows, and the claims and metrics in what is committed."""
    plan, text = load_plan("tiny"), code(path)
    arms = {
        *re.findall(rf"notebook\.(?:gallery|figure)\(\"{ARM}\"", text),
        *re.findall(rf'load\("data/results/tiny/{ARM}"', text),
    }
    assert arms and arms <= {*needed(path)}
    assert {*needed(path)} <= {f"{row.paper}/{arm}" for arm, row in plan.evaluate.items()}
    (told,) = re.findall(r'make repro PAPER=\\?"([\w ]+)\\?"', text)
    assert told.split() == list(dict.fromkeys(arm.partition("/")[0] for arm in needed(path)))
    for paper, claims in re.findall(r'notebook\.verdicts\("(\w+)"([^)]*)\)', text):
        notebook.verdicts(paper, *re.findall(r'"([\w-]+)"', claims))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of the machinery around the kernel; warnings inside it are its own
@pytest.mark.parametrize("path", [path for path in NOTEBOOKS if path not in FAMILIES], ids=named)
def test_runs_from_top_to_bottom(finished, path, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("MPLBACKEND", "agg")
    executed(path, finished.folder)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("path", FAMILIES, ids=named)
def test_missing_results_are_named_in_one_line(finished, path):
    with pytest.raises(CellExecutionError) as error:
        executed(path, finished.folder)
    missing = [arm for arm in needed(path) if not (finished.folder / "data/results/tiny" / arm).exists()]
    papers = " ".join(dict.fromkeys(arm.partition("/")[0] for arm in missing))
    assert error.value.ename == "Missing"
    said = f"There are no results of {', '.join(missing)} here. They take: make repro PAPER={papers!r}"
    assert error.value.evalue == said
    cell, _, shown = error.value.traceback.rpartition("------------------\n")
    assert "notebook.needed(" in cell and shown.strip() == said  # and nothing of the code behind it


@pytest.fixture(scope="module")
def stand_ins(finished, tmp_path_factory):
    """A clone of the finished project with stand-ins of all results that the notebooks of families need."""
    copy = finished.clone(tmp_path_factory.mktemp("notebooks"))
    shutil.copytree(ROOT / "results", copy.folder / "results", dirs_exist_ok=True)
    text = "\n".join(map(code, FAMILIES))
    for name in {*re.findall(r"data/datasets/(\w+)/tiny", text)}:
        prepare(name, copy.folder)
    loaded = {*re.findall(rf'load\("data/results/tiny/{ARM}"', text)}
    for arm in sorted({arm for path in FAMILIES for arm in needed(path)}):
        folder = copy.folder / "data/results/tiny" / arm
        if not folder.exists():
            folder.mkdir(parents=True)
            lay(copy.folder, folder, arm.partition("/")[2], weights=arm in loaded)
            galleries = re.findall(rf'notebook\.gallery\("{re.escape(arm)}", "([\w-]+)"', text)
            write_json(folder / "galleries.json", [asdict(gallery(name)) for name in galleries])
            figures = re.findall(rf'notebook\.figure\("{re.escape(arm)}", "([\w-]+)"', text)
            write_json(folder / "figures.json", [asdict(figure(name)) for name in figures])
    return copy


def prepare(name, project):
    """The first rows of a data set."""
    folder = project / "data/datasets" / name / "tiny"
    if not folder.exists():
        config = compose("tiny", dataset=name)["dataset"]
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(rehearsal, "current", rehearsal.Rehearsal(rows=ROWS))
            get_method(config.pop("_target_"))(folder, **config)


def lay(project, folder, arm, *, weights):
    """What answers with an arm: the record of its network, and drawn weights if it is to be loaded."""
    plan = load_plan("tiny")
    record = how_built(plan, evaluated(plan, plan.row("evaluate", arm)))
    retriever = arm.startswith("clip_vip")  # its evaluation writes the network itself
    loader = {"loader": "lightning_modules.clip_vip.retriever.Retriever.load"}
    write_json(folder / "predictor.json", loader if retriever else record)
    if not weights:
        return
    prepare(record["dataset"].split("/")[2], project)
    module = settings.bind(record["model"], f"the model of {arm}")()
    place = folder / "retriever.safetensors" if retriever else project / record["runs"] / "seed-0/weights.safetensors"
    place.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: x.contiguous() for name, x in module.export().items()}, place)
    if retriever:
        write_json(folder / "retriever.json", {"tokenizer": None, "model": record["model"]})


def gallery(name):
    shown = Exhibit("a picture", Picture.of(np.zeros((8, 8, 3), np.uint8), "nothing"))
    return Gallery(
        name, "Stand-in", "of examples", [[shown, Exhibit("a text", text=[("right", True), ("wrong", False)])]]
    )


def figure(name):
    return Figure(name, "Stand-in", "of a figure", "x", "y", [Series("line", "line", [0.0, 1.0], [0.0, 1.0])])


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("path", FAMILIES, ids=named)
def test_a_family_runs_on_stand_ins_of_its_results(stand_ins, path):
    executed(path, stand_ins.folder)


@pytest.mark.guides
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("path", FAMILIES, ids=named)
def test_a_family_runs_on_the_results_of_this_project(path):
    try:
        notebook.needed(*needed(path))
    except notebook.Missing as error:
        pytest.skip(str(error))
    executed(path, ROOT)
