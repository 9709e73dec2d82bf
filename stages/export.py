"""Export a trained network as a folder of `transformers`: `python -m stages.export maskalign my-encoder`.

The folder has the weights (safetensors), the configuration of the model, an image processor that prepares pictures as
this project does (of a language model its tokenizer), and a model card (README.md): paper, claims with their verdicts,
data, commit, and how to load it.
The arm is one that is pre-trained, or one that is fine-tuned (then `--protocol` says how, and the first of its system's
file is the default). Systems whose architecture `transformers` does not have are refused, with the reason.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning_modules import settings
from lightning_modules.datasets import storage
from lightning_modules.files import ROOT, replace_folder
from lightning_modules.metrics import claims
from lightning_modules.predictors import centre_share
from lightning_modules.runs import Run, find_runs
from lightning_modules.settings import meant
from lightning_modules.tracking import records
from stages.arms import table
from stages.command import run_stage, stage_arguments
from stages.composing import compose
from stages.plan import Plan, PlanError, Row, load_plan

if TYPE_CHECKING:
    from lightning_modules.layers.exported import Exported

LONGEST = 30_000  # characters of the table of claims
PICTURE = """from PIL import Image
from transformers import AutoImageProcessor, {kind}

processor = AutoImageProcessor.from_pretrained("{out}")
model = {kind}.from_pretrained("{out}"{options})
pixels = processor(Image.open("picture.png").convert("RGB"), return_tensors="pt")["pixel_values"]
{usage}"""
IDS = 'token_ids = tokenizer("a red circle", add_special_tokens=False, return_tensors="pt")["input_ids"]\n'
TEXT = """from transformers import AutoTokenizer, {kind}

tokenizer = AutoTokenizer.from_pretrained("{out}")
model = {kind}.from_pretrained("{out}"{options})
{usage}"""


def trained(plan: Plan, arm: str, protocol: str | None) -> tuple[Row, dict[str, Any], Path]:
    """The row of an arm, the blocks that its network and data were built from, and the folder of its seeds.

    Raises:
        PlanError: no paper has such an arm, or its system has no such protocol.
    """
    if arm not in plan.pretrain and arm not in plan.finetune:
        arms = [*plan.pretrain, *plan.finetune]
        raise PlanError(f"plans/{plan.preset}: no trained arm {arm!r}{meant(arm, arms)}")
    row = plan.pretrain.get(arm) or plan.finetune[arm]
    blocks = compose(plan.preset, system=row.system, overrides=row.overrides)["system"]
    runs = ROOT / "data/runs" / plan.preset
    if arm in plan.pretrain:
        return row, blocks, runs / arm / "pretrain"
    protocols = blocks["downstream"]
    protocol = protocol or next(iter(protocols))
    if protocol not in protocols:
        raise PlanError(f"--protocol is {protocol!r}{meant(protocol, protocols)}")
    return row, protocols[protocol], runs / row.comparison / "finetune" / row.start / protocol


def seed_of(folder: Path, seed: str | None) -> Run:
    """One of the trained seeds, the first by default.

    Raises:
        PlanError: it was not trained here.
    """
    runs = {str(run.seed): run for run in find_runs(folder) if not run.name}
    if not runs or (seed is not None and seed not in runs):
        there = f"seeds {', '.join(runs)}" if runs else "no trained seed"
        raise PlanError(
            f"{folder.relative_to(ROOT)} has {there}{'' if seed is None else f', not {seed}'}; `make repro` trains"
        )
    return runs[seed] if seed is not None else next(iter(runs.values()))


def processor(exported: "Exported", data: Mapping[str, Any]) -> Any:
    """The image processor that does with a picture file what evaluation does: size, central square, normalisation.

    Raises:
        ValueError: pictures keep their aspect ratio within a square.
    """
    if "long" in data:
        raise ValueError(
            f"pictures keep their aspect ratio within a square of {data['long']} px (data.short, data.long), which no "
            "image processor of transformers does: export an arm whose pictures become squares"
        )
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    config = getattr(exported.model.config, "vision_config", exported.model.config)
    side, share = config.image_size, centre_share(data)
    square = {"height": side, "width": side}
    mean, std = exported.statistics
    return CLIPImageProcessorPil(
        size=square if share is None else {"shortest_edge": round(side / share)},
        do_center_crop=share is not None,
        crop_size=square,
        resample=3,
        image_mean=list(mean),
        image_std=list(std),
    )


def card(plan: Plan, row: Row, run: Run, exported: "Exported", out: Path) -> str:
    """The model card, in Markdown."""
    facts = claims.load_facts(claims.facts_file(ROOT, row.paper))
    dataset = f"data/datasets/{row.dataset}/{plan.preset}"
    known = records.provenance()
    dirty = " with changes that were not committed" if known.get("git.dirty") == "true" else ""
    digests = ", ".join(
        f"{split} {value[:16]}" for split, value in storage.card(ROOT / dataset)["content_sha256"].items()
    )
    kind = type(exported.model).__name__
    options = "".join(f", {name}={value}" for name, value in exported.options.items())
    reading = TEXT if hasattr(exported, "tokenizer") else PICTURE
    own = not hasattr(exported, "tokenizer") or exported.usage.startswith("token_ids")  # of a text of its own
    code = reading.format(kind=kind, out=out, options=options, usage=exported.usage if own else IDS + exported.usage)
    source = (
        f"[{facts.title}](https://arxiv.org/abs/{facts.arxiv}), {facts.venue}"
        if hasattr(facts, "venue")
        else facts.title
    )
    committed = ROOT / "results" / plan.preset / row.paper / "claims.json"
    ledger = json.loads(committed.read_text()) if committed.is_file() else []
    judged = table(ledger, LONGEST, row.paper) if ledger else "No claim has been judged yet."
    return f"""---
library_name: transformers
---
# {row.arm} ({plan.preset}, seed {run.seed})

Trained by Reprise, for a reproduction of {source}.

| | |
|---|---|
| arm | `{row.arm}` of `{row.paper}`, system `{row.system}`, preset `{plan.preset}`, seed {run.seed} |
| data | `{dataset}`, SHA-256 of its content: {digests} |
| weights | SHA-256 in the project: {run.facts["weights_sha256"]} |
| commit | {known.get("git.commit", "unknown")}{dirty} |

```python
{code}
```

What it computes is equal to what the project computes, to 1e-5.

## Claims of the paper, judged in the project

{judged}
"""


def main() -> None:
    """Load the trained seed, let its module say what it is in `transformers`, and write the folder."""
    arguments = stage_arguments("arm", "out", "--seed", "--protocol")
    plan, out = load_plan(arguments.preset), Path(arguments.out)
    row, blocks, folder = trained(plan, arguments.arm, arguments.protocol)
    if out.exists():
        raise ValueError(f"{out} exists already: choose another name, or remove it")
    run = seed_of(folder, arguments.seed)

    import torch  # only after the plan was checked

    module = settings.bind(blocks["model"], f"the model of {row.arm}")()
    module.load_export({name: torch.from_numpy(array) for name, array in run.weights().items()})
    try:
        exported = module.eval().to_transformers()
    except ValueError as error:
        raise ValueError(f"{row.arm} ({type(module).__name__}) cannot be exported: {error}") from error
    with replace_folder(out) as temporary:
        exported.model.save_pretrained(temporary)
        reads = exported.tokenizer if hasattr(exported, "tokenizer") else processor(exported, blocks["data"])
        reads.save_pretrained(temporary)
        (temporary / "README.md").write_text(card(plan, row, run, exported, out), encoding="utf-8")
    print(f"{out}: a {type(exported.model).__name__} of transformers; README.md in it says how to load it")


if __name__ == "__main__":
    run_stage(main)
