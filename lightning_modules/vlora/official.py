"""Weights of the official generator (FeipengMa6/VLoRA, under `model.mm_projector.`) in our names."""

import re
from collections.abc import Mapping

from torch import Tensor

from lightning_modules.layers.published import load_strictly
from lightning_modules.vlora.generator import PerceptualWeights

PREFIX = "model.mm_projector."
NAMES = (
    (r"visual_proj\.", "projection."),
    (r"pos_embed$", "positions"),
    (r"gen\.(\d+)\.", r"decoders.\1."),
    (r"gen\.", "decoders.0."),
    (r"\.decoders\.(\d+)\.self_attn\.", r".blocks.\1.own."),
    (r"\.decoders\.(\d+)\.multihead_attn\.", r".blocks.\1.cross."),
    (r"\.decoders\.(\d+)\.linear1\.", r".blocks.\1.widen."),
    (r"\.decoders\.(\d+)\.linear2\.", r".blocks.\1.narrow."),
    (r"\.decoders\.(\d+)\.norm1\.", r".blocks.\1.norms.0."),
    (r"\.decoders\.(\d+)\.norm2\.", r".blocks.\1.norms.1."),
    (r"\.decoders\.(\d+)\.norm3\.", r".blocks.\1.norms.2."),
    (r"\.weights_head\.", ".head."),
)


def load_official(made: PerceptualWeights, state: Mapping[str, Tensor]) -> None:
    """Take over all weights of the official generator.

    Args:
        made: of the same sizes, for a language model without grouped heads.
        state: of a whole model, or of the first phase alone (`mm_projector.bin`); other parts are not read.

    Raises:
        ValueError: there is no generator in it, or one of other sizes.
    """
    own = {name.removeprefix(PREFIX): x for name, x in state.items() if name.startswith(PREFIX)}
    if "Bs" not in own:
        raise ValueError(f"there is no {PREFIX}Bs among the {len(state)} weights: give a checkpoint of VLoRA.")
    found = {_renamed(name): x for name, x in own.items() if name != "Bs"}
    count = len(made.adapted)
    if own["Bs"].shape[:2] != (1, count * len(made.kinds)) or own["Bs"].shape[2] % made.rank:
        raise ValueError(
            f"Bs is {tuple(own['Bs'].shape)}, expected (1, {count * len(made.kinds)}, width x {made.rank}): build the "
            "generator with the rank, kinds and skip of the checkpoint."
        )
    factors = own["Bs"][0].unflatten(1, (-1, made.rank)).split(count)
    found |= {f"learned.{kind}": x.clone() for kind, x in zip(made.kinds, factors, strict=True)}
    load_strictly(made, found, "the official generator")


def _renamed(name: str) -> str:
    for pattern, own in NAMES:
        name = re.sub(rf"^{pattern}" if not pattern.startswith(r"\.") else pattern, own, name)
    return name
