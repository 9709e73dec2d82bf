"""What the runner itself costs, in CPU seconds, on a generated project of 300 stages in 19 papers.

The commands of its stages do next to nothing, so that what is left is the runner and DVC. Every figure is of a fresh
process, with its children where the line says so.
"""

import subprocess
import sys
from pathlib import Path

STAGES, PAPERS = 300, 19
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
