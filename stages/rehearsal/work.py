"""What the processes of a rehearsal do: run one stage and measure it, build an arm without memory, or make data small.

Each is a function that is called in a process of its own, in the copy of the project, and returns what it found.
"""

import json
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from torch import Tensor

from lightning_modules import rehearsal, settings
from lightning_modules.datasets import storage, tables
from lightning_modules.datasets.columns import to_numpy
from lightning_modules.datasets.video import corpora
from lightning_modules.files import replace_folder
from lightning_modules.layers.teacher import Frozen
from lightning_modules.processes import peak_memory
from lightning_modules.validation import Validation
from stages.command import run_stage
from stages.composing import compose
from stages.plan import Row

STEPS = 2  # of each training
Found = dict[str, Any]


class Steps(Callback):
    """Ends each training after `STEPS` optimiser steps, and says how long the last one took.

    Then it validates once, where the recipe says that a run does it, so that mistakes there are found, too.
    """

    def __init__(self):
        self.found: list[Found] = []

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin to measure."""
        self.times = [time.perf_counter()]

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: object) -> None:
        """Count a step where the accumulated batches are complete; GANs take several optimisers in one."""
        if (trainer.fit_loop.epoch_loop.total_batch_idx + 1) % trainer.accumulate_grad_batches:
            return
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.times.append(time.perf_counter())
        if len(self.times) > STEPS:
            trainer.should_stop = True
            for callback in trainer.callbacks:
                if isinstance(callback, Validation) and callback.every:
                    callback.act(trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Note what was measured."""
        states = [x for each in trainer.optimizers for state in each.state.values() for x in state.values()]
        self.found.append(
            {
                "steps": len(self.times) - 1,
                "seconds_per_step": self.times[-1] - self.times[-2],
                "first_step": self.times[1] - self.times[0],
                "batch": getattr(trainer.datamodule, "batch_size", None),
                "optimizer_bytes": _bytes(x for x in states if isinstance(x, Tensor)),
            }
        )


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum(x.numel() * x.element_size() for x in tensors)


def stage(name: str, arguments: Sequence[str], rows: int, narrow: int) -> Found:
    """Run a stage as its command does, with everything of a rehearsal in force.

    Raises:
        SystemExit: the stage ended with an error.
    """
    steps = Steps()
    rehearsal.current = rehearsal.Rehearsal(rows=rows, narrow=narrow, callbacks=[steps])
    sys.argv = [name, *arguments]
    start = time.perf_counter()
    run_stage(import_module(f"stages.{name}").main)
    found = {
        "seconds": time.perf_counter() - start,
        "memory": peak_memory(),
        "trainings": steps.found,
        "replaced": [told_of(name) for name in sorted(rehearsal.current.replaced)],
    }
    if torch.cuda.is_initialized():
        found["memory"] = torch.cuda.max_memory_reserved()
    return found


def told_of(name: str) -> str:
    """What is to be said of a published network or tokenizer that something drawn took the place of."""
    from transformers.utils import cached_file

    repository = name.removeprefix("tokenizer ")
    try:
        cached_file(repository, "config.json", local_files_only=True)
    except OSError:
        return f"not here: {name}, so a drawn one took its place; `hf download {repository}` fetches it"
    return f"{name} is here, but a narrow one took its place"


def build(stage: str, row: Row, preset: str) -> list[Found]:
    """Compose the trainings of an arm, check every setting, and build its networks on the meta device.

    Returns:
        For each training: its protocol, parameters, and bytes of what is held in any case.
    """
    blocks = compose(preset, system=row.system, overrides=row.overrides, stage=stage)["system"]
    return [_built(name, block, where(row, preset, name)) for name, block in trainings(blocks, stage).items()]


def where(row: Row, preset: str, name: str) -> str:
    """The place of a training's settings, for messages."""
    return f"conf/system/{row.system}/{preset}.yaml (or the arm's overrides): {name}"


def trainings(blocks: Mapping[str, Any], stage: str) -> dict[str, Found]:
    """Model, data and recipe of each training of an arm, by the name of its recipe."""
    if stage != "finetune":
        return {"pretrain": {"model": blocks["model"], "data": blocks["data"], "recipe": blocks["pretrain"]}}
    return {
        name: {
            "model": block["model"],
            "data": block["data"],
            "recipe": {key: value for key, value in block.items() if key not in ("model", "data")},
        }
        for name, block in blocks["downstream"].items()
    }


def _built(name: str, block: Found, place: str) -> Found:
    try:
        with torch.device("meta"):
            module = settings.bind(block["model"], f"{place}.model")()
    except FileNotFoundError as error:
        raise ValueError(
            f"{place}: {error.filename} does not exist, expected the file that the setting names: put it there, or "
            "correct the path"
        ) from None
    recipe = module.check_recipe(block["recipe"], place)
    settings.bind(block["data"], f"{place}.data", folder=Path(), seed=0)
    tensors = [*module.parameters(), *module.buffers()]
    for part in module.modules():
        if isinstance(part, Frozen):
            tensors += [*part.network.parameters(), *part.network.buffers()]
    learnt = [x for x in module.parameters() if x.requires_grad] if recipe["epochs"] else []
    kept = 1 if recipe.get("optimizer") in ("sgd", "lars") else 2  # moments of the optimiser for each weight
    state, trained = _bytes(module.state_dict().values()), _bytes(learnt)
    return {
        "training": name,
        "parameters": sum(x.numel() for x in tensors),
        "trained": sum(x.numel() for x in learnt),
        "memory": _bytes(tensors) + (1 + kept) * trained,
        "checkpoint": state + kept * trained if learnt else 0,
        "outputs": _bytes(module.export().values()),
        "epochs": recipe["epochs"],
        "batch": block["data"].get("batch_size"),
        "source": block["data"].get("splits", {}).get("train", {}).get("source"),
        "rows": block["data"].get("splits", {}).get("train", {}).get("rows"),
    }


def compose_evaluation(stage: str, row: Row, preset: str) -> Found:
    """Compose a row of `evaluate` or `sweep` and check every setting that does not come from its runs."""
    if stage == "sweep":
        sweep = compose(preset, sweep="cached", overrides=row.overrides)["sweep"]
        for block in ("members", "search"):
            settings.bind(sweep[block], f"conf/sweep/cached.yaml (or the arm's overrides): {block}")
    else:
        system = compose(preset, system=row.system, overrides=row.overrides, stage="evaluate")["system"]
        settings.bind(system["evaluate"], where(row, preset, "evaluate"))
    return {}


def shorten(prepared: Path, out: Path, rows: int) -> Found:
    """Copy the first rows of each split of a prepared data set; one of an unknown form is taken as it is."""
    facts = storage.card(prepared)
    rehearsal.current = rehearsal.Rehearsal(rows=rows)
    if facts.get("codec", tables.CODEC) != tables.CODEC:
        with replace_folder(out) as new:
            written = {split: _first_rows(prepared, new, split, facts) for split in facts["splits"]}
            card = {
                "splits": {split: each.rows for split, each in written.items()},
                "content_sha256": {split: each.sha256 for split, each in written.items()},
            }
            (new / "card.json").write_text(json.dumps(facts | card))
    elif all(isinstance(split, dict) for split in facts["splits"].values()):
        with replace_folder(out) as new:
            for split, told in facts["splits"].items():
                told |= _first_of_index(prepared / f"{split}.parquet", new, told["sha256"], rows)
            cache = str((prepared.parents[3] / facts["cache"]).absolute())
            (new / "card.json").write_text(json.dumps(facts | {"cache": cache}))
    else:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.symlink_to(prepared)
    return {}


def _first_of_index(path: Path, out: Path, expected: str, rows: int) -> Found:
    """Copy the first rows of an index of files; gives their number and digest."""
    table = pq.read_table(path, partitioning=None)
    if corpora.table_digest(table) != expected:
        raise ValueError(f"{path} is not what was prepared. {storage.WAY_OUT}")
    table = table.slice(0, rows)
    pq.write_table(table, out / path.name, compression="zstd")
    return {"rows": len(table), "sha256": corpora.table_digest(table)}


def _first_rows(prepared: Path, out: Path, split: str, facts: Mapping[str, Any]) -> storage.Split:
    shape = tuple(facts["image_shape"]) if facts["codec"] == "raw" else None
    paths = storage.shards(prepared, split)
    schema = pq.read_schema(paths[0]).remove_metadata()

    def blocks():
        for path in paths:
            with pq.ParquetFile(path) as file:
                for number in range(file.num_row_groups):
                    table = file.read_row_group(number)
                    yield {name: to_numpy(table[name], shape) for name in table.column_names}

    group = pq.read_metadata(paths[0]).row_group(0).num_rows
    return storage.write_blocks(out, split, blocks(), facts["codec"], shape, schema=schema, row_group=group)


def make_stand_in(config: Mapping[str, Any], folder: Path, rows: int) -> Found:
    """Let a data set write a stand-in of itself.

    Raises:
        ValueError: it has none.
    """
    module = import_module(config["_target_"].rpartition(".")[0])
    if not hasattr(module, "stand_in"):
        raise ValueError(
            f"{module.__name__} has no function `stand_in` beside `prepare`: get the files, or write it (see "
            "datasets/download.py)"
        )
    folder.mkdir(parents=True)
    return module.stand_in(
        folder, rows=rows, **{key: value for key, value in config.items() if key != "_target_"}
    )._asdict()
