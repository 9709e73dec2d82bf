"""Weights of the official generator (FeipengMa6/VLoRA at 623aa52, under `model.mm_projector.`) in our names.

Read `load_official` first. Each name of a checkpoint is taken, is one of `UNUSED`, or is refused.
"""

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from lightning_modules.layers.published import load_strictly, read_checkpoint
from lightning_modules.vlora.generator import PerceptualWeights

PREFIX = "model.mm_projector."
HEADS = 16  # of attention: `weights_generater.py` has them as a default that nothing sets
CONFIG = "config.json"
LAYER = re.compile(r"model\.layers\.(\d+)\.")
LANGUAGE = (
    r"lm_head\.weight|model\.embed_tokens\.weight|model\.norm\.weight|model\.layers\.\d+\.(?:self_attn\.[qkvo]_proj|"
    r"mlp\.(?:gate|up|down)_proj|input_layernorm|post_attention_layernorm)\.weight"
)
UNUSED = {  # what a checkpoint of the whole model has besides the generator, and why it is not read here
    LANGUAGE: "the language model, a Llama under its own names",
    r"model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq": "a constant, which older Llamas store",
    r"model\.vision_tower\.vision_tower\.(?:vision_model\.)?(?:embeddings|pre_layrnorm|encoder\.layers\.\d+|"
    r"post_layernorm)\.[\w.]+": "the vision tower, which is frozen: that of CLIP as published",
}
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


def load_official(
    made: PerceptualWeights,
    state: Mapping[str, Tensor],
    config: Mapping[str, Any] | None = None,
    *,
    heads: int = HEADS,
) -> None:
    """Take over all weights of the official generator.

    Heads and alpha are in no shape, and other ones give other numbers: heads are compared with those of the official
    code, alpha and all sizes with `config`.

    Args:
        made: of the same sizes, for a language model without grouped heads.
        state: of a whole model, or of the first phase alone (`mm_projector.bin`), see `read_official`.
        config: what `config.json` beside them says; without it alpha is not compared.
        heads: of attention, where the official code was called with others.

    Raises:
        ValueError: there is no generator in it, or one of other sizes, or a name that is neither the generator's nor
            one of `UNUSED`.
    """
    own = {name.removeprefix(PREFIX): x for name, x in state.items() if name.startswith(PREFIX)}
    if "Bs" not in own:
        raise ValueError(f"there is no {PREFIX}Bs among the {len(state)} weights: give a checkpoint of VLoRA.")
    layers = made.adapted.stop
    if odd := [name for name in state if not name.startswith(PREFIX) and not _unused(name, layers)]:
        raise ValueError(
            f"{len(odd)} of {len(state)} weights are neither the generator's nor those of a Llama of {layers} layers "
            f"or of CLIP's tower, {odd[0]} first: give a checkpoint of VLoRA as it was published."
        )
    _check_sizes(made, config, heads)
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


def _unused(name: str, layers: int) -> bool:
    layer = LAYER.match(name)
    return any(re.fullmatch(pattern, name) for pattern in UNUSED) and (layer is None or int(layer[1]) < layers)


def _check_sizes(made: PerceptualWeights, config: Mapping[str, Any] | None, heads: int) -> None:
    """Refuse a generator that is none of the official one's sizes."""
    if (there := made.decoders[0].blocks[0].own.num_heads) != heads:
        raise ValueError(f"the generator has {there} heads, the official one has {heads}: build it with as many.")
    if config is None:
        return
    own, widths = official_sizes(made), {width for kind in made.kinds for width in made.sizes[kind]}
    if missing := [name for name in own if name not in config]:
        raise ValueError(f"{CONFIG} has no {', '.join(missing)}: give that of VLoRA, as it lies beside the weights.")
    alpha = config["vlora_alpha"] if config["vlora_alpha"] is not None else config["vlora_rank"]
    for name in own:
        value = alpha if name == "vlora_alpha" else config[name]
        same = math.isclose(value, own[name]) if name == "vlora_alpha" else value == own[name]
        if not same or (name == "vlora_llm_dim" and widths != {value}):
            raise ValueError(
                f"{CONFIG} says {name} {value!r}, the generator has {own[name]!r}: build it with the sizes of the "
                "checkpoint."
            )


def official_sizes(made: PerceptualWeights) -> dict[str, object]:
    """The sizes of a generator under the names of the official `config.json`."""
    return {
        "vlora_dim": made.projection.out_features,
        "vlora_depth": len(made.decoders[0].blocks),
        "vlora_visual_dim": made.projection.in_features,
        "vlora_pos_num": made.positions.shape[1],
        "vlora_llm_dim": made.sizes[made.kinds[0]][0],
        "vlora_llm_depth": made.adapted.stop,
        "vlora_rank": made.rank,
        "vlora_type": made.kinds,
        "vlora_alpha": made.scale * made.rank,
        "weights_sep": made.separate,
        "skip_layers": made.adapted.step,
    }


def read_official(place: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The weights and the `config.json` of a published folder, or of `mm_projector.bin` with the one beside it.

    Args:
        place: a folder with `*.safetensors`, or with `pytorch_model*.bin`; or the file of the first phase.

    Raises:
        ValueError: a file is missing, damaged, or holds something else.
    """
    folder = place if place.is_dir() else place.parent
    files = (
        sorted(place.glob("*.safetensors")) or sorted(place.glob("pytorch_model*.bin")) if place.is_dir() else [place]
    )
    if not files:
        raise ValueError(f"{place} has neither *.safetensors nor pytorch_model*.bin: give the folder of VLoRA-7b-v1.")
    _check_whole(folder, files)
    state: dict[str, Tensor] = {}
    for file in files:
        state |= _weights(file)
    return state, _object(folder / CONFIG)


def _check_whole(folder: Path, files: list[Path]) -> None:
    """Refuse a folder without some of the files that its index names."""
    for index in folder.glob("*.index.json"):
        named = set(_object(index).get("weight_map", {}).values())
        beside = {name for name in named if Path(name).suffix == files[0].suffix}
        if missing := sorted(beside - {file.name for file in files}):
            raise ValueError(f"{index} names {missing[0]}, which is not there: fetch all {len(named)} files.")


def _object(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read ({error}): fetch it with the weights.") from error
    if not isinstance(found, dict):
        raise ValueError(f"{path} holds a {type(found).__name__}, expected an object as it is published.")
    return found


def _weights(file: Path) -> dict[str, Tensor]:
    if file.suffix != ".safetensors":
        content = read_checkpoint(file)
        if not isinstance(content, dict) or not all(isinstance(x, Tensor) for x in content.values()):
            raise ValueError(f"{file} holds no weights by their names: give a checkpoint of VLoRA.")
        return content
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(file)
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{file} is cut off or damaged: fetch it again. ({error})") from error


def _renamed(name: str) -> str:
    for pattern, own in NAMES:
        name = re.sub(rf"^{pattern}" if not pattern.startswith(r"\.") else pattern, own, name)
    return name
