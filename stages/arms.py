"""What MLflow shows of a paper and of its arms: descriptions, and the mean and interval of each metric over seeds."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning_modules.files import ROOT, scratch, sha256
from lightning_modules.metrics import claims
from lightning_modules.runs import Evaluation, find_runs
from lightning_modules.tracking import records
from stages.plan import Plan, Row

LONGEST = {"experiment": 9_900, "arm": 7_900}  # characters; MLflow takes 20,000 for both presets, and 8,000 for a run
Ledger = Sequence[Mapping[str, Any]]


def record_training(plan: Plan, row: Row, out: Path) -> None:
    """Record an arm as a whole, after its seeds were trained: means of the metrics in `out/seed-<seed>/`."""
    by_seed = {run.seed: json.loads((run.folder / "metrics.json").read_text()) for run in find_runs(out)}
    with _opened(plan, row.paper, row.arm, recipe(row)) as record:
        record.data(_data(plan, row), "training")
        record.update(summarised(by_seed))
        if "mlflow.note.content" not in record.meta["tags"]:
            record.describe(arm_text(plan, row.paper, row.arm, []))


def record_evaluation(
    plan: Plan, row: Row, name: str, by_seed: Mapping[int, Mapping[str, float]], evaluation: Evaluation
) -> None:
    """Record an arm as a whole, after it was evaluated: means of the metrics, and the model, if files of it are one."""
    with _opened(plan, row.paper, name) as record:
        record.data(_data(plan, row), "evaluation")
        record.update(summarised({seed: prefixed(metrics) for seed, metrics in by_seed.items()}))
        if evaluation.predictor:
            folder = ROOT / "data/results" / plan.preset / row.paper / name
            record.model(evaluation.predictor, [folder], {file: sha256(folder / file) for file in evaluation.files})


def recipe(row: Row) -> dict[str, str]:
    """What is trained and how an arm differs from the file of its system, as tags.

    They are not parameters: MLflow keeps the first value of a parameter, and a plan changes.
    """
    overrides = ", ".join(f"{name}={value}" for name, value in records.flatten(row.overrides).items())
    return {
        "system": row.system,
        "dataset": row.dataset,
        "from": row.start or "nothing",
        "overrides": overrides or "none",
    }


def prefixed(metrics: Mapping[str, float]) -> dict[str, float]:
    """The names that the metrics of an evaluation have in MLflow, before it replaces letters that it does not take."""
    return {f"evaluate/{name}": value for name, value in metrics.items()}


def summarised(by_seed: Mapping[int, Mapping[str, float]]) -> dict[str, float]:
    """The mean of each metric under its own name, and the ends of its 95 % interval in `<name>.low` and `<name>.high`.

    Runs of seeds have the same names, so that one column of MLflow shows the seeds and, beside them, the arm's mean. A
    metric that is not finite for some seed is left out; one seed alone has no interval.
    """
    found: dict[str, float] = {}
    for name, row in claims.summary({"arm": by_seed})["arm"].items():
        ends = {name: row["mean"], f"{name}.low": row["low"], f"{name}.high": row["high"]}
        found |= {key: value for key, value in ends.items() if value is not None}
    return found | {"seeds": float(len(by_seed))}


def describe(plan: Plan, facts: claims.Facts | claims.Idea, ledger: Ledger) -> None:
    """Describe the experiment of a paper and each arm of it, with the verdicts on its claims."""
    records.describe_experiment(facts.stem, plan.preset, experiment_text(plan.preset, facts, ledger))
    for stage in ("pretrain", "finetune", "evaluate", "sweep"):
        for row in getattr(plan, stage).values():
            name = f"sweep-{row.arm}" if stage == "sweep" else row.arm
            if row.paper == facts.stem and _has_runs(facts.stem, plan.preset, name):
                with _opened(plan, facts.stem, name) as record:
                    record.describe(arm_text(plan, facts.stem, name, ledger))


def experiment_text(preset: str, facts: claims.Facts | claims.Idea, ledger: Ledger) -> str:
    """A paper in Markdown: what it is, the claims with their verdicts, and the command that runs it again."""
    if isinstance(facts, claims.Idea):
        source = f"{facts.title}. Own idea, held against {facts.against}."
    else:
        link = f"[{facts.title}](https://arxiv.org/abs/{facts.arxiv})" if facts.arxiv else facts.title
        source = f"{link}, {facts.venue}."
    option = "" if preset == "tiny" else f" PRESET={preset}"
    found = Counter(row["verdict"] for row in ledger)
    counts = ", ".join(f"{found[verdict]} {verdict}" for verdict in claims.VERDICTS)
    head = f"{facts.stem} ({preset}): {counts}.\n\n{source} {facts.idea}\n\n"
    tail = f"\n\nRun it again: `make repro PAPER={facts.stem}{option}`; train again: with `FORCE=1`."
    return head + table(ledger, LONGEST["experiment"] - len(head + tail), facts.stem) + tail


def arm_text(plan: Plan, stem: str, name: str, ledger: Ledger) -> str:
    """An arm in Markdown: its stages, the claims that it is part of, and the commands that run it again."""
    stages = {
        "pretrain_from" if stage == "pretrain" and rows[arm].start else stage: rows[arm]
        for stage in ("pretrain", "finetune", "evaluate", "sweep")
        if (arm := name.removeprefix("sweep-") if stage == "sweep" else name) in (rows := getattr(plan, stage))
        and (stage == "sweep") == name.startswith("sweep-")
    }
    systems = ", ".join(dict.fromkeys(f"{row.system} on {row.dataset}" for row in stages.values()))
    head = f"Arm `{name}` of `{stem}` ({plan.preset}): {systems}. Metrics are means over seeds, with the 95 % interval "
    head += "in `.low` and `.high`.\n\n"
    lines = [f"dvc repro plans/{plan.preset}/{stem}/dvc.yaml:{stage}@{row.arm}" for stage, row in stages.items()]
    tail = "\n\nRun it again (with `-f`, even if nothing has changed):\n\n```\n" + "\n".join(lines) + "\n```"
    ends = {f"@{name}", *(f"@{row.start}" for stage, row in stages.items() if stage == "finetune")}
    mine = [row for row in ledger if name in row["arms"] or any(each.endswith(tuple(ends)) for each in _metrics(row))]
    return head + (table(mine, LONGEST["arm"] - len(head + tail), stem) if mine else "") + tail


def _metrics(row: Mapping[str, Any]) -> list[str]:
    return [name for name in (row["metric"], row["reference_metric"]) if name]


def table(ledger: Ledger, longest: int, stem: str) -> str:
    """The claims with their verdicts as a table in Markdown, without the statements if it would be too long."""
    for statements in (True, False):
        head = ["claim", *(["statement"] if statements else []), "verdict", "difference", "95 % interval", "unit"]
        rows = [head, ["---"] * len(head)]
        for row in ledger:
            told = [row["statement"].replace("|", "/").replace("\n", " ")] if statements else []
            rows.append([row["id"], *told, row["verdict"], *_measured(row), row["unit"]])
        text = "\n".join(f"| {' | '.join(cells)} |" for cells in rows)
        if not statements:
            text += f"\n\nThe statements are in `{claims.facts_file(ROOT, stem).relative_to(ROOT)}`."
        if len(text) <= longest:
            return text
    judged = [row for row in ledger if row["verdict"] != "not testable"]
    if len(judged) < len(ledger):
        return table(judged, longest - 100, stem) + "\n\nClaims that cannot be tested at this size are left out."
    return f"The {len(ledger)} claims are too many for MLflow: see `results/{ledger[0]['preset']}/{stem}/claims.json`."


def _measured(row: Mapping[str, Any]) -> list[str]:
    if row["difference"] is None:
        return ["", ""]
    interval = row["interval"]
    return [f"{row['difference']:.4g}", "" if interval is None else f"{interval[0]:.4g} to {interval[1]:.4g}"]


def _opened(plan: Plan, paper: str, arm: str, tags: Mapping[str, str] | None = None) -> records.RunRecord:
    return records.open_record(experiment=paper, arm=arm, preset=plan.preset, tags=tags)


def _data(plan: Plan, row: Row) -> Path:
    return ROOT / "data/datasets" / row.dataset / plan.preset


def _has_runs(paper: str, preset: str, arm: str) -> bool:
    """Whether something was recorded about an arm: one that never ran here gets no run in MLflow."""
    return any((scratch() / "runs" / paper).glob(f"{preset}--{arm}--*"))
