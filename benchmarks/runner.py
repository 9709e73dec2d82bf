"""What the runner itself costs, in CPU seconds, on a generated project of 300 stages in 19 papers.

The commands of its stages do next to nothing, so that what is left is the runner and DVC. Every figure is of a fresh
process, with its children where the line says so.
"""

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

from lightning_modules.files import ROOT

STAGES, PAPER_COUNT = 300, 19
PIPELINE = """vars: [params.yaml]
stages:
  prepare:
    foreach: ${datasets}
    do:
      wdir: ../../..
      cmd: COMMAND data/datasets/${item}/${preset}
      deps:
        - data/sources/${preset}/prepare.json
      params:
        - conf/dataset/${item}/${preset}.yaml:
      outs:
        - data/datasets/${item}/${preset}
  pretrain:
    foreach: ${pretrain}
    do:
      wdir: ../../..
      cmd: COMMAND data/runs/${preset}/${key}/pretrain
      deps:
        - data/sources/${preset}/pretrain.json
        - data/datasets/${item.dataset}/${preset}
      params:
        - params.yaml: [seeds]
        - plans/${preset}/${stem}/params.yaml:
            - pretrain.${key}
        - conf/system/${item.system}/${preset}.yaml: [model, data, pretrain]
      outs:
        - data/runs/${preset}/${key}/pretrain
  pretrain_from:
    foreach: ${pretrain_from}
    do:
      wdir: ../../..
      cmd: COMMAND data/runs/${preset}/${key}/pretrain
      deps:
        - data/sources/${preset}/pretrain.json
        - data/datasets/${item.dataset}/${preset}
        - data/runs/${preset}/${item.from}/pretrain
      params:
        - params.yaml: [seeds]
        - plans/${preset}/${stem}/params.yaml:
            - pretrain_from.${key}
        - conf/system/${item.system}/${preset}.yaml: [model, data, pretrain]
      outs:
        - data/runs/${preset}/${key}/pretrain
  finetune:
    foreach: ${finetune}
    do:
      wdir: ../../..
      cmd: COMMAND data/runs/${preset}/${key}/finetune
      deps:
        - data/sources/${preset}/finetune.json
        - data/datasets/${item.dataset}/${preset}
        - data/runs/${preset}/${item.from}/pretrain
      params:
        - params.yaml: [seeds]
        - plans/${preset}/${stem}/params.yaml:
            - finetune.${key}
        - conf/system/${item.system}/${preset}.yaml: [model, pretrain]
      outs:
        - data/runs/${preset}/${key}/finetune
  evaluate:
    foreach: ${evaluate}
    do:
      wdir: ../../..
      cmd: COMMAND data/results/${preset}/${stem}/${key}
      deps:
        - data/sources/${preset}/evaluate.json
        - data/runs/${preset}/${item.runs}/${item.stage}
      params:
        - plans/${preset}/${stem}/params.yaml:
            - evaluate.${key}
        - conf/system/${item.system}/${preset}.yaml: [evaluate]
      outs:
        - data/results/${preset}/${stem}/${key}
  claims:
    wdir: ../../..
    cmd: COMMAND results/${preset}/${stem}
    deps:
      - data/sources/${preset}/claims.json
      - data/results/${preset}/${stem}
    params:
      - plans/${preset}/${stem}/params.yaml: [evaluate]
    outs:
      - results/${preset}/${stem}/claims.json: {cache: false}
"""
ROOT_PIPELINE = """stages:
  sources:
    cmd: COMMAND data/sources/tiny
    deps: [conf]
    outs: [data/sources/tiny]
  report:
    cmd: COMMAND data/report/tiny
    deps: [data/sources/tiny/report.json, data/results/tiny, results/tiny]
    outs: [data/report/tiny]
"""
COMMAND = "sh make.sh"
SCRIPT = """set -e
mkdir -p $1
case $1 in
*/sources/*) for name in prepare pretrain finetune evaluate claims report; do echo {} >$1/$name.json; done;;
*) echo $1 >$1/claims.json;;
esac
"""


PROBE = """import time
import stages.pretrain, stages.evaluate
from lightning_modules import training
open("cpu", "w").write(str(time.process_time()))
"""


def main() -> list[dict]:
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        few, many = STAGES // 3, STAGES
        runs = {}
        for stages, papers in ((few, PAPER_COUNT // 3), (many, PAPER_COUNT)):
            project = folder / str(stages)
            project.mkdir()
            generate(project, stages, papers)
            runs[stages] = _measured(project)
            idle = _measured(project)
        start, fresh = _start_of_a_training(folder)
        each = (runs[many]["own"] - idle["own"]) / many
        ratio = _all(runs[many]) / _all(runs[few])
        return [
            {"what": "until the first line of `make repro`", "cpu_seconds": _first_line(), "target": "2"},
            {"what": f"nothing to do, {many} stages in {PAPER_COUNT} papers", "cpu_seconds": _all(idle), "target": "5"},
            {"what": "bookkeeping, a stage", "cpu_seconds": each, "target": "0.5"},
            {"what": "start of a training: forked", "cpu_seconds": start, "target": "0.5"},
            {"what": "start of a training: a fresh process", "cpu_seconds": fresh, "ratio": fresh / start},
            {"what": f"{few} stages", "cpu_seconds": _all(runs[few])},
            {"what": f"{many} stages", "cpu_seconds": _all(runs[many]), "ratio": ratio, "target": f"3.5 times {few}"},
        ]


def _all(run: dict) -> float:
    return run["own"] + run["children"]


def _measured(project: Path) -> dict:
    """CPU seconds of the runner on a project, in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.runner", str(project)]
    environment = {**os.environ, "DVC_ROOT": str(project)}
    done = subprocess.run(command, cwd=ROOT, env=environment, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def measure(project: Path) -> None:
    """Bring a project up to date in this process, and print what it took."""
    from stages.runner.bookkeeping import Bookkeeper
    from stages.runner.schedule import Runner

    books = Bookkeeper(project)
    runner = Runner(books, books.graph, slots=["", ""])
    runner.run()
    books.close()
    if runner.failed or runner.left:
        raise SystemExit(f"error: {runner.failed}")
    own, children = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    print(json.dumps({"own": own.ru_utime + own.ru_stime, "children": children.ru_utime + children.ru_stime}))


def _first_line() -> float:
    """CPU seconds until `make repro` prints something."""
    command = [sys.executable, "-m", "stages.repro"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        process.stdout.readline()
        times = psutil.Process(process.pid).cpu_times()
        process.kill()
    return times.user + times.system


def _start_of_a_training(folder: Path) -> tuple[float, float]:
    """CPU seconds until a training has what it needs: forked from the server, and in a fresh process."""
    from stages.runner import children

    (folder / "probe.py").write_text(PROBE)
    children.FORKED = children.FORKED | {"probe"}
    server = children.Server()
    while not server.ready():
        time.sleep(0.1)
    seconds = []
    for given in (server, None):
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        child = children.Child(
            "python -m probe", folder=folder, environment=environment, log=folder / "log", server=given
        )
        while child.poll() is None:
            children.wait([child], 1)
        child.close()
        seconds.append(float((folder / "cpu").read_text()))
    return seconds[0], seconds[1]


def generate(folder: Path, stages: int, papers: int) -> None:
    """Write a DVC project of so many stages into an empty folder."""
    import yaml

    each, more = divmod(stages - 2, papers)
    rows = {"system": "", "dataset": "", "max_seeds": 3, "overrides": {"model": {"width": 8}, "data": {"rows": 64}}}
    for number in range(papers):
        stem = f"paper{number:02}"
        wanted = each + (number < more) - 3  # beside a data set, the first arm and the claims
        counts = {"pretrain": wanted // 5, "pretrain_from": wanted // 5, "finetune": wanted // 5}
        counts["evaluate"] = wanted - sum(counts.values())
        row = rows | {"system": stem, "dataset": f"data-{stem}"}
        plan: dict = {"preset": "tiny", "stem": stem, "datasets": [f"data-{stem}"]}
        plan["pretrain"] = {f"{stem}-a{index}": row for index in range(counts["pretrain"] + 1)}
        for stage, letter in (("pretrain_from", "b"), ("finetune", "c")):
            plan[stage] = {f"{stem}-{letter}{i}": row | {"from": f"{stem}-a{i % 2}"} for i in range(counts[stage])}
        runs = [(stage, arm) for stage in ("pretrain", "pretrain_from", "finetune") for arm in plan[stage]]
        plan["evaluate"] = {
            f"{stem}-e{index}": {"system": stem, "runs": arm, "stage": stage.removesuffix("_from"), "overrides": {}}
            for index, (stage, arm) in enumerate((runs * 2)[: counts["evaluate"]])
        }
        _write(folder / "plans/tiny" / stem / "dvc.yaml", PIPELINE.replace("COMMAND", COMMAND))
        _write(folder / "plans/tiny" / stem / "params.yaml", yaml.dump(plan, sort_keys=False))
        settings = {f"setting_{index}": index / 7 for index in range(12)}
        blocks = {block: settings for block in ("model", "data", "pretrain", "evaluate")}
        _write(folder / f"conf/system/{stem}/tiny.yaml", yaml.dump(blocks))
        _write(folder / f"conf/dataset/data-{stem}/tiny.yaml", yaml.dump(settings))
    _write(folder / "dvc.yaml", ROOT_PIPELINE.replace("COMMAND", COMMAND))
    _write(folder / "params.yaml", "seeds: [0, 1, 2]\n")
    _write(folder / "make.sh", SCRIPT)
    _write(folder / "data/.gitignore", "*\n!.gitignore\n")
    for command in ("git init -q", f"{sys.executable} -m dvc init -q", "git add -A"):
        subprocess.run(command.split(), cwd=folder, check=True)


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


if __name__ == "__main__":
    measure(Path(sys.argv[1]))
