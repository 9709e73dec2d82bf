"""What the runner itself costs, in CPU seconds, on a generated project of 300 stages in 19 papers.

Its stages are those of this project, with commands that do next to nothing, so that what is left is the runner and DVC.
Every figure is of a fresh process, with its children where the line says so.
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
import yaml

from lightning_modules.files import ROOT

STAGES, PAPER_COUNT = 300, 19
SCRIPT = """set -e
for made; do
    case $made in
    *.*) mkdir -p $(dirname $made); echo $made >$made;;
    data/sources/*) mkdir -p $made; while read name; do echo {} >$made/$name.json; done <manifests;;
    *) mkdir -p $made; echo $made >$made/file;;
    esac
done
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
    """Write a DVC project of so many stages, those of this project, into an empty folder."""
    each, more = divmod(stages - 2, papers)
    template = next(iter(ROOT.glob("plans/tiny/*/dvc.yaml")))  # the same in every folder
    blocks = ("model", "data", "pretrain", "downstream", "evaluate")
    settings = {f"setting_{index}": index / 7 for index in range(12)}
    manifests = ["report"]
    for number in range(papers):
        stem = f"paper{number:02}"
        wanted = each + (number < more) - 3  # beside a data set, the first arm and the claims
        third, data = wanted // 5, f"data-{stem}"
        row = {"system": stem, "dataset": data, "overrides": {"model": {"width": 8}, "data": {"rows": 64}}}
        started = [row | {"from": f"{stem}-a{index}"} for index in range(third)]
        plan: dict = {"preset": "tiny", "paper": stem, "max_seeds": 3, "datasets": [data]}
        plan["pretrain"] = {f"{stem}-a{index}": row for index in range(third + 1)}
        plan["pretrain_from"] = {f"{stem}-b{index}": arm for index, arm in enumerate(started)}
        plan["finetune"] = {f"{stem}-c{index}": arm for index, arm in enumerate(started)}
        runs = [("pretrain", arm) for arm in [*plan["pretrain"], *plan["pretrain_from"]]]
        runs.append(("finetune", f"{stem}-{data}"))
        plan["evaluate"] = {
            f"{stem}-e{index}": {"system": stem, "runs": arm, "stage": stage}
            for index, (stage, arm) in enumerate((runs * 2)[: wanted - 3 * third])
        }
        plan["sweep"] = {}
        manifests += [f"{stage}.{stem}" for stage in ("pretrain", "finetune", "evaluate", "claims")]
        manifests.append(f"prepare.{data}")
        _write(folder / "plans/tiny" / stem / "dvc.yaml", _with_commands(template))
        _write(folder / "plans/tiny" / stem / "params.yaml", yaml.dump(plan, sort_keys=False))
        _write(folder / f"conf/system/{stem}/tiny.yaml", yaml.dump({block: settings for block in blocks}))
        _write(folder / f"conf/dataset/{data}/tiny.yaml", yaml.dump(settings))
    for name in ("conf/comparisons.yaml", "ideas/idea.yaml", "lightning_modules/code.py", "stages/code.py"):
        _write(folder / name, "")
    _write(folder / "dvc.yaml", _with_commands(ROOT / "dvc.yaml"))
    _write(folder / "params.yaml", "seeds: [0, 1, 2]\nat_least: null\n")
    _write(folder / "make.sh", SCRIPT)
    _write(folder / "manifests", "\n".join(manifests) + "\n")
    _write(folder / "data/.gitignore", "*\n!.gitignore\n")
    for command in ("git init -q", f"{sys.executable} -m dvc init -q", "git add -A"):
        subprocess.run(command.split(), cwd=folder, check=True)


def _with_commands(path: Path) -> str:
    """The stages of a `dvc.yaml` with commands that make their outputs, and do nothing else."""
    text = yaml.safe_load(path.read_text())
    for stage in text["stages"].values():
        stage = stage.get("do", stage)
        made = [out for kind in ("outs", "metrics", "plots") for out in stage.get(kind, ())]
        stage["cmd"] = " ".join(["sh make.sh", *(out if isinstance(out, str) else next(iter(out)) for out in made)])
    return yaml.dump(text, sort_keys=False)


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


if __name__ == "__main__":
    measure(Path(sys.argv[1]))
