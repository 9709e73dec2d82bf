"""What a rehearsal runs of a plan, and with which settings. Knows no paper: it goes by the names of settings.

On a GPU every arm runs at its own size. On a CPU one chain of arms of each paper runs, with narrow networks that
are not deep, and small batches; all others are only composed and built.
"""

import math
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from stages.plan import Plan, Row

NARROW = 16  # divides widths on a CPU; every width of a vision transformer is a multiple of 64
NARROWED = re.compile(r"(\w+_)?(dim|width|hidden|bottleneck)|hidden_size|intermediate_size|codebook_size")
OF_THE_DATA = ("feature_dim",)  # widths that a network cannot choose
FEWER_BITS = 3  # divides the bits of tokens that have no codebook, on a CPU: 2^6 for 2^18, of which a softmax is small
BATCH, EVALUATION_BATCH = 4, 8  # rows, on a CPU
DEEP, LAYERS = 12, 4  # a network of more than so many blocks has so few on a CPU
WRITTEN = ("pictures", "judged_rows")  # counts of what a network writes, one token after another
PICTURES = 2  # of these, on a CPU
TRIALS = {"trials": 6, "batch": 3}  # of a sweep: two for each kind of model

Changes = dict[str, Any]


def chosen(plan: Plan, papers: Iterable[str], whole: bool) -> dict[str, list[Row]]:
    """The rows that are run, by stage, in the order in which they can run.

    Not `whole`: of each paper the evaluation that needs most trainings, of fine-tuned arms (one of a comparison) too,
    and one sweep.
    """
    found: dict[str, list[Row]] = {stage: [] for stage in ("pretrain", "finetune", "evaluate", "sweep")}
    for paper in papers:
        mine = {stage: [row for row in getattr(plan, stage).values() if row.paper == paper] for stage in found}
        if whole:
            for stage, rows in mine.items():
                found[stage] += rows
            continue
        deepest = sorted(mine["evaluate"], key=lambda row: (-_depth(plan, row), row.stage == "pretrain"))
        tuned = [row for row in deepest if row.stage == "finetune"]
        evaluated = deepest[:1] + [row for row in tuned[:1] if row not in deepest[:1]]
        compared = [_compared(plan, row)[:1] for row in evaluated if row.stage == "finetune"]
        found["evaluate"] += evaluated
        found["finetune"] += [row for rows in compared for row in rows]
        found["sweep"] += sorted(mine["sweep"], key=lambda row: row.runs not in [each.runs for each in evaluated])[:1]
    needed = [row.start for row in found["finetune"]]
    needed += [row.runs for stage in ("evaluate", "sweep") for row in found[stage] if row.stage == "pretrain"]
    arms = [arm for name in needed for arm in _chain(plan, name)] + [row.arm for row in found["pretrain"]]
    rows = {arm: plan.pretrain[arm] for arm in arms}
    found["pretrain"] = sorted(rows.values(), key=lambda row: len(_chain(plan, row.arm)))
    return found


def _chain(plan: Plan, arm: str) -> list[str]:
    start = plan.pretrain[arm].start
    return [*(_chain(plan, start) if start else ()), arm]


def _compared(plan: Plan, row: Row) -> list[Row]:
    return [each for each in plan.finetune.values() if each.comparison == row.runs]


def _depth(plan: Plan, row: Row) -> int:
    """Trainings, one after another, that a row of `evaluate` needs."""
    if row.stage == "pretrain":
        return len(_chain(plan, row.runs))
    return 1 + max(len(_chain(plan, each.start)) for each in _compared(plan, row))


def leaves(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted names and values of a configuration; lists and empty mappings are values."""
    for key, value in tree.items():
        if isinstance(value, Mapping) and value:
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def changes(
    system: Mapping[str, Any], rows: Mapping[str, int], *, whole: bool, batch: int | None = None, devices: int = 1
) -> Changes:
    """Settings of a system's file that a rehearsal changes, by dotted name.

    Args:
        system: the resolved configuration of an arm.
        rows: that the prepared data set has of each of its splits.
        whole: keep the sizes of networks, and batches.
        batch: most rows of a step; by default all, or `BATCH`.
        devices: that a step is divided among; a rehearsal runs on one of them.
    """
    batch = batch or (None if whole else BATCH)
    found: Changes = {}
    settings = dict(leaves(system))
    for name, value in settings.items():
        block, _, rest = _block(name)
        if block == "model" and not whole and (small := _small(name, value, settings)) != value:
            found[name] = small
        if block == "data" and _of_batches(rest, "batch_size") and value:
            mine = -(-value // devices)
            mine = min(mine, batch or mine)
            if mine != value:
                found[name] = mine
        if block == "data" and _of_batches(rest, "evaluation_batch_size") and not whole:
            found[name] = min(value, EVALUATION_BATCH)
    scored = not whole and "model.judged_rows" in settings  # each token of a judged clip, for every word
    for name, data in _data_blocks(system):
        found |= {f"{name}.{key}": value for key, value in _fewer_rows(data, rows).items()}
        if scored:
            found |= {f"{name}.splits.{split}.rows": PICTURES for split in data.get("splits", {}) if split != "train"}
    return found


def own(changed: Changes, written: Mapping[str, Any]) -> Changes:
    """Those changes whose settings a system's file has itself; a block that refers to another one follows it.

    Args:
        changed: as `changes` gives them.
        written: the configuration before references such as `encoder: ${system.model.encoder}` are resolved.
    """
    there = dict(leaves(written))
    return {name: value for name, value in changed.items() if name in there}


def _block(name: str) -> tuple[str, str, str]:
    """The block that a setting lies in, `model` or `data`, of the system itself or of a protocol."""
    parts = name.split(".")
    parts = parts[2:] if parts[0] == "downstream" else parts
    return parts[0], ".", ".".join(parts[1:])


def _of_batches(rest: str, name: str) -> bool:
    """Whether a setting of a data module, or of that of a task, is the one of this name."""
    return rest == name or (rest.startswith("tasks.") and rest.endswith(f".data.{name}"))


def _data_blocks(system: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """The data modules of the system and of its protocols, and those of the tasks that they alternate between."""
    blocks = {"data": system["data"]} if "data" in system else {}
    blocks |= {f"downstream.{name}.data": recipe["data"] for name, recipe in system.get("downstream", {}).items()}
    for name, block in blocks.items():
        yield name, block
        for task, settings in block.get("tasks", {}).items() if isinstance(block.get("tasks"), Mapping) else ():
            yield f"{name}.tasks.{task}.data", settings["data"]


def _small(name: str, value: Any, settings: Mapping[str, Any]) -> Any:
    """What a setting of a network is on a CPU."""
    before, _, last = name.rpartition(".")
    if last == "codebook_size" and settings.get(f"{before}.embedding_dim", value) is None:
        return 2 ** ((value.bit_length() - 1) // FEWER_BITS)
    if last == "bits" and isinstance(value, list):  # of the parts of such a token
        return [part // FEWER_BITS for part in value]
    if _narrowed(last, value):
        return value // NARROW
    if last == "widths" and all(isinstance(width, int) for width in value):
        return [max(number, width // NARROW) for number, width in enumerate(value, start=1)]
    if last == "layers" and isinstance(value, int):
        return LAYERS if value > DEEP else value
    if last == "attention_dropout":
        return 0.0  # on a CPU it keeps the attention of all layers in memory
    return min(value, PICTURES) if last in WRITTEN else value


def _narrowed(name: str, value: Any) -> bool:
    wide = isinstance(value, int) and value >= 4 * NARROW and value % NARROW == 0
    return wide and NARROWED.fullmatch(name) is not None and name not in OF_THE_DATA


def _fewer_rows(data: Mapping[str, Any], rows: Mapping[str, int]) -> Changes:
    """Counts of rows of a data module that are no more than there are: of `splits`, and `images` of `sources`."""
    found: Changes = {}
    parts = {name: part for name, part in data.get("splits", {}).items() if isinstance(part, Mapping)}
    for name, part in parts.items():
        count, there = part.get("rows"), rows.get(part.get("source"))
        if count is None or there is None:
            continue
        beside = [each["rows"] for each in parts.values() if each.get("source") == part["source"]]
        there = there // 2 if None in beside else there  # null is for the rest, which must not be empty
        asked = sum(filter(None, beside))
        if asked > there:
            found[f"splits.{name}.rows"] = max(1, count * there // asked)
    for name, block in data.items():
        if isinstance(block, Mapping) and isinstance(block.get("images"), int) and "sources" in block:
            there = sum(rows.get(source, 0) for source in block["sources"])
            found[f"{name}.images"] = min(block["images"], there)
    return found


def needed_rows(system: Mapping[str, Any], *, whole: bool) -> int:
    """Rows of each prepared split that suffice for two steps of every training of an arm, see `_fewer_rows`."""
    found = 1
    for _, data in _data_blocks(system):
        batch = data.get("batch_size") or 1
        batch = batch if whole else min(batch, BATCH)
        parts = data.get("splits", {})
        train = parts.get("train", {})
        beside = [part["rows"] for part in parts.values() if part["source"] == train.get("source")]
        share = train["rows"] / sum(filter(None, beside)) if train.get("rows") else 0.5 if any(beside) else 1.0
        found = max(found, math.ceil(2 * batch / share))
    return found
