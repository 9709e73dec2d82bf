"""Made-up pools of members on disk, in the layout of a finished run: wider members know more, copies err apart."""

import json
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from lightning_modules.runs import Run, sha256


def write_run(
    folder: Path,
    *,
    seed: int = 0,
    widths: tuple[int, ...] = (4, 8, 16, 32),
    copies: int = 2,
    samples: int = 400,
    classes: int = 5,
    extra_resolution: bool = False,
    family: str = "mlp",
    weights: bool = True,
) -> Run:
    """A run whose member logits are a shared difficulty, a skill that grows with width, and noise of their own."""
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    predictions, members = {}, []
    ease = {}
    for split in ("val", "test"):
        predictions[f"labels/{split}"] = rng.integers(0, classes, samples)
        ease[split] = rng.normal(1.5, 1.5, samples)
    for rank, width in enumerate(widths):
        for copy in range(copies):
            name = f"{family}-h{width}#{copy}"
            macs = {"8": 100 * width, **({"6": 56 * width} if extra_resolution else {})}
            members.append(
                {
                    "name": name,
                    "family": family,
                    "width": width,
                    "depth": 2,
                    "copy": copy,
                    "params": 11 * width,
                    "macs": macs,
                    "native": "8",
                }
            )
            for split in ("val", "test"):
                for resolution in macs:
                    noise = rng.normal(size=(samples, classes))
                    noise[np.arange(samples), predictions[f"labels/{split}"]] += ease[split] + 0.5 * rank
                    suffix = "" if resolution == "8" else f"@{resolution}"
                    predictions[f"logits/{name}/{split}{suffix}"] = (1.5 * noise).astype(np.float32)
    save_file(predictions, folder / "predictions.safetensors")
    facts = {
        "seed": seed,
        "dataset": "made_up",
        "num_classes": classes,
        "images": {"shape": [1, 8, 8], "scale": 16},
        "members": members,
        "predictions_sha256": sha256(folder / "predictions.safetensors"),
    }
    if weights:
        tensors = {
            f"members.{m['name']}.weight": rng.normal(size=(classes, m["width"])).astype(np.float32) for m in members
        }
        save_file(tensors, folder / "weights.safetensors")
        facts["weights_sha256"] = sha256(folder / "weights.safetensors")
    (folder / "facts.json").write_text(json.dumps(facts))
    return Run(folder, seed)


def rewrite_predictions(run: Run, change) -> Run:
    """The same run after `change(predictions)`, with a digest that fits."""
    predictions = {key: array.copy() for key, array in run.predictions().items()}
    change(predictions)
    save_file(predictions, run.folder / "predictions.safetensors")
    facts = {**run.facts, "predictions_sha256": sha256(run.folder / "predictions.safetensors")}
    (run.folder / "facts.json").write_text(json.dumps(facts))
    return Run(run.folder, run.seed)
