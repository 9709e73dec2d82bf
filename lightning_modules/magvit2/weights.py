"""Tokenizers of TencentARC/SEED-Voken (Open-MAGVIT2), the only published weights of this kind. The authors have none.

A checkpoint of Lightning has in its `state_dict` the networks, their moving averages (`model_ema.<name without dots>`,
which evaluation uses there), the discriminator and the perceptual loss. The quantiser has no tensors.
"""

import re
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from lightning_modules.layers.published import load_strictly, read_checkpoint
from lightning_modules.video_tokens.causal_tokenizer import CausalTokenizer

DEEP = {"multipliers": (1, 1, 2, 2, 4), "halve_time": (False,) * 4}
SETTINGS: dict[str, dict] = {  # configs/Open-MAGVIT2/gpu
    "image-256": {"frames": 1, "size": 256, "dims": 2, **DEEP},
    "image-128": {"frames": 1, "size": 128, "dims": 2},
    "pretrain-16384": {"frames": 1, "size": 256, "dims": 2, "codebook_size": 2**14, **DEEP},
    "pretrain-262144": {"frames": 1, "size": 256, "dims": 2, **DEEP},
    "video": {"frames": 17, "size": 128, "pooled_norm": True, "drop_second": True},
}
PARTS = {  # theirs, a regular expression -> ours, of what lies in the encoder or the decoder
    r"conv_in": "stem",
    r"mid_block\.": "tail.",
    r"norm_out": "norm",
    r"conv_out": "head",
    r"(?:down|up)\.(\d+)\.block\.": r"levels.\1.",
    r"down\.(\d+)\.downsample": r"shrink.\1",
    r"up\.(\d+)\.upsample\.conv1": r"grow.\1.conv",
    r"adaptive\.(\d+)\.": r"adaptive.\1.",
}
UNUSED = ("loss.", "model_ema.decay", "model_ema.num_updates", "model_ema.loss")


def seed_voken_tokenizer(name: str, **options: object) -> CausalTokenizer:
    """The network of a released checkpoint, in evaluation mode and with drawn weights; `load_seed_voken` fills it.

    Args:
        name: `image-256` (16 x 16 pixels a token), `image-128` (8 x 8), the two tokenizers of the pre-training, or
            `video`.
        options: of `CausalTokenizer`, in place of those of the checkpoint, such as `width` for small tests.

    Raises:
        ValueError: there is no such checkpoint.
    """
    if name not in SETTINGS:
        raise ValueError(f"no released checkpoint is called {name!r}: expected one of {', '.join(SETTINGS)}.")
    return CausalTokenizer(**{**SETTINGS[name], **options}).eval()


def read_seed_voken(path: str | Path) -> dict[str, Tensor]:
    """The `state_dict` of a checkpoint file; code in the file is refused.

    Raises:
        ValueError: the file cannot be read, or has no `state_dict`, or this holds anything but tensors.
    """
    content = read_checkpoint(Path(path))
    if not isinstance(content, dict) or "state_dict" not in content:
        raise ValueError(
            f"{path} has no entry `state_dict`, expected a checkpoint of Lightning as SEED-Voken gives it."
        )
    state = content["state_dict"]
    if not isinstance(state, dict):
        raise ValueError(f"`state_dict` of {path} is of type {type(state).__name__}, expected tensors by their names.")
    for name, value in state.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise ValueError(
                f"`state_dict` of {path} holds {type(value).__name__} at {name!r}, expected tensors by their names."
            )
    return state


def load_seed_voken(tokenizer: CausalTokenizer, state: Mapping[str, Tensor], *, averages: bool = True) -> list[str]:
    """Load a checkpoint, every tensor of it being taken or named.

    Args:
        tokenizer: of `seed_voken_tokenizer`; nothing is changed if an error is raised.
        state: tensors by their names in the checkpoint.
        averages: whether to take the moving averages, as the official evaluation does, or else the last weights.

    Returns:
        The names of tensors that a tokenizer does not use: discriminator, perceptual loss, and the other copy.

    Raises:
        ValueError: a tensor is unknown or missing, or has another shape.
    """
    plain = {name: x for name, x in state.items() if name.startswith(("encoder.", "decoder."))}
    copies = {f"model_ema.{name.replace('.', '')}": name for name in plain}
    unused = [name for name in state if name.startswith(UNUSED)]
    rest = {name: x for name, x in state.items() if name not in plain and name not in copies and name not in unused}
    chosen = {name: state[copy] for copy, name in copies.items() if copy in state} if averages else plain
    levels = len(tokenizer.encoder.levels)
    found = {_name(name, levels): x.unsqueeze(2) if x.ndim == 4 else x for name, x in chosen.items()}
    load_strictly(tokenizer, {**found, **rest}, "the checkpoint of SEED-Voken")
    return sorted(unused + [name for name in (plain if averages else copies) if name in state])


def _name(theirs: str, levels: int) -> str:
    """Our name of a tensor; the levels of a decoder are counted from the other end."""
    part, _, rest = theirs.replace(".conv_1.", ".").partition(".")
    for pattern, ours in PARTS.items():
        if re.match(pattern, rest):
            rest = re.sub(f"^{pattern}", ours, rest).replace("nin_shortcut", "shortcut")
            break
    if part == "decoder":
        rest = re.sub(r"^(levels|grow|adaptive)\.(\d+)", lambda m: f"{m[1]}.{levels - 1 - int(m[2])}", rest)
    return f"{part}.{rest}"
