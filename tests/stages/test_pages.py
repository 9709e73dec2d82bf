"""What a person sees, in a headless browser: the report, MLflow's pages, and the Pareto plot of Optuna's dashboard.

Screenshots are kept beside the project's copy, in pytest's temporary folder (`shots/`).
"""

import json
import re
import shutil
import subprocess
import sys
import time
import urllib.request
from contextlib import contextmanager
from html import unescape

import pytest

from tests.conftest import free_port

CHROMIUM = shutil.which("chromium")
TRAINING = "workflowType=machine_learning"
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed (Debian: apt-get install chromium)"),
]


@pytest.fixture(scope="module")
def see(tmp_path_factory):
    """Opens an address and gives what is in the page once its scripts have run; `name` is that of the screenshot."""
    profile, shots = tmp_path_factory.mktemp("profile"), tmp_path_factory.mktemp("shots")
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars"]
    command += [f"--user-data-dir={profile}", "--window-size=1500,1200", "--virtual-time-budget=30000"]

    def run(output: str, address: str) -> str:
        return subprocess.run(
            [*command, output, address], capture_output=True, text=True, timeout=180, check=True
        ).stdout

    def page(name: str, address: str) -> str:
        run(f"--screenshot={shots / name}.png", address)
        assert (shots / f"{name}.png").stat().st_size > 10_000
        return unescape(run("--dump-dom", address))

    return page


@pytest.fixture(scope="module")
def server(finished):
    """The address of MLflow's pages, served as `make ui` does."""
    with served(finished) as (address, said):
        assert said == f"{address}/#/experiments?{TRAINING}"
        yield address


@contextmanager
def served(finished, *arguments: str):
    """The address of `stages.ui` once it answers, and the line that it printed."""
    port = free_port()
    command = [sys.executable, "-m", "stages.ui", "--port", str(port), *arguments]
    address = f"http://127.0.0.1:{port}"
    quiet = {"stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL, "text": True}
    with subprocess.Popen(command, cwd=finished.folder, env=finished.environment, **quiet) as process:
        said = process.stdout.readline().strip()
        deadline = time.monotonic() + 240
        while not _answers(address):
            assert process.poll() is None and time.monotonic() < deadline, "the server does not start"
            time.sleep(0.5)
        yield address, said
        process.terminate()


def _answers(address: str) -> bool:
    try:
        with urllib.request.urlopen(address, timeout=5) as answer:
            return answer.status == 200
    except OSError:
        return False


def sent(finished, arm: str, stage: str) -> list[dict]:
    """Experiment and run ids of the runs of an arm in a stage, in order of their seeds."""
    pattern = f"*/tiny--{arm}" if stage == "arm" else f"*/tiny--{arm}--{stage}--*"
    folders = (finished.folder / ".scratch/runs").glob(pattern)
    return [json.loads((folder / "sent.json").read_text()) for folder in sorted(folders)]


def test_the_report_shows_every_verdict_and_leads_to_the_runs(finished, see):
    folder = finished.folder / "data/report/tiny"
    overview = see("overview", (folder / "index.html").as_uri())
    pages = {page.stem: see(page.stem, page.as_uri()) for page in sorted((folder / "papers").iterdir())}
    assert pages and all(f'href="papers/{stem}.html"' in overview for stem in pages)
    dom = "".join(pages.values())
    shown = {block.partition('"')[0]: block for block in dom.split('data-claim="')[1:]}
    ledgers = (finished.folder / "results/tiny").glob("*/claims.json")
    claims = [row for ledger in ledgers for row in json.loads(ledger.read_text())]
    assert {claim["verdict"] for claim in claims} > {"not testable"}
    for claim in claims:
        assert claim["verdict"] in shown[f"{claim['paper']}/{claim['id']}"]
    assert dom.count("<svg role=") >= 6
    run = sent(finished, "committees-digits", "pretrain")[0]
    assert f"/#/experiments/{run['experiment_id']}/runs/{run['run_id']}?{TRAINING}" in dom  # filled in by machine.js


def test_mlflow_lists_the_experiments_and_the_arms(finished, server, see):
    dom = see("experiments", f"{server}/#/experiments?{TRAINING}")
    assert "committees" in dom and "small_ensembles" in dom
    assert "Default" not in dom
    experiment = sent(finished, "committees-digits", "arm")[0]["experiment_id"]
    dom = see("runs", f"{server}/#/experiments/{experiment}?{TRAINING}")
    assert "committees-digits (tiny)" in dom
    assert "committees-mnist" not in dom
    table = dom[dom.index("committees-digits (tiny)") :]
    assert (
        re.search(r"digits \(\w{16}\)", table) and "make repro PRESET=tiny PAPER=committees" in table
    )  # Dataset, Source
    assert "Wisdom of Committees" in dom  # the experiment's description


def test_mlflow_compares_two_seeds_metric_by_metric(finished, server, see):
    first, second, *_ = sent(finished, "committees-digits", "evaluate")
    ids = json.dumps([first["run_id"], second["run_id"]], separators=(",", ":"))
    experiments = json.dumps([first["experiment_id"]])
    dom = see("comparison", f"{server}/#/compare-runs?runs={ids}&experiments={experiments}&{TRAINING}")
    assert "Comparing 2 Runs from 1 Experiment" in dom
    assert "committees-digits evaluate seed-0" in dom and "committees-digits evaluate seed-1" in dom
    assert "evaluate/digits/cascade/top1_percent" in dom
    assert "lightning_modules.committees.evaluation.evaluate" in dom  # the parameters are there too


def test_mlflow_shows_a_run_with_its_curves_and_parameters(finished, server, see):
    run = sent(finished, "committees-digits", "pretrain")[0]
    dom = see("run", f"{server}/#/experiments/{run['experiment_id']}/runs/{run['run_id']}?{TRAINING}")
    assert "committees-digits pretrain seed-0" in dom
    assert "pretrain/mlp-h8/loss" in dom
    assert "system.pretrain.lr" in dom


def test_mlflow_shows_the_figures_of_an_arm(finished, server, see):
    (run,) = sent(finished, "committees-digits", "arm")
    artifacts = f"{server}/#/experiments/{run['experiment_id']}/runs/{run['run_id']}/artifacts"
    dom = see("figure", f"{artifacts}/figures/digits-accuracy-macs.png?{TRAINING}")
    assert "figures/digits-accuracy-macs.png" in dom
    assert re.search(r'<img[^>]+src="(blob:|data:|[^"]*get-artifact)', dom)


def test_the_dashboard_shows_the_pareto_front_of_the_sweep(finished, see):
    with served(finished, "--study", "sweep-committees-digits") as (address, said):
        assert said == address
        dom = see("dashboard", f"{address}/dashboard/studies/0")
    assert "sweep-committees-digits" in dom
    assert "Pareto Front" in dom
    assert "validation" in dom.lower() or "macs" in dom.lower()  # the axes are the study's objectives
