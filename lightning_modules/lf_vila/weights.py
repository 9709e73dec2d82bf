"""Weights that LF-VILA begins with, and those that it has published.

The video encoder begins with a Swin transformer for pictures (`swin_base_patch4_window12_384_22k`), inflated to videos;
`make_video_swin` takes it from the hub, and `inflated` also reads the names of the file that the authors of Swin
released. `load_official` reads LF-VILA's own checkpoints: `lfvila_stage1.bin`, `lfvila_stage2.bin`, fine-tuned ones.
"""

import math
import re
from collections.abc import Mapping
from fnmatch import fnmatch
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn
from transformers import SwinConfig, SwinModel

from lightning_modules import rehearsal
from lightning_modules.layers.published import from_pretrained, load_strictly, read_checkpoint
from lightning_modules.lf_vila.network import VideoSwin

PUBLISHED = {  # settings of SwinConfig that are not its defaults
    "microsoft/swin-base-patch4-window12-384-in22k": {
        "image_size": 384, "embed_dim": 128, "depths": [2, 2, 18, 2], "num_heads": [4, 8, 16, 32], "window_size": 12,
    },
}  # fmt: skip
FROM_HUB = (  # names of `transformers` and of the authors of Swin, which are ours, too
    (r"^embeddings\.patch_embeddings\.projection\.", "patch_embed.proj."),
    (r"^embeddings\.norm\.", "patch_embed.norm."),
    (r"^encoder\.", ""),
    (r"^layernorm\.", "norm."),
    (r"\.layernorm_before\.", ".norm1."),
    (r"\.layernorm_after\.", ".norm2."),
    (r"\.attention\.relative_position_bias\.", ".attn."),
    (r"\.attention\.o_proj\.", ".attn.proj."),
)
HEAD = "text_encoder.seq_relationship."  # official name; ours is that of `transformers`
OUR_HEAD = "text_encoder.cls.seq_relationship."
TWICE = "text_encoder.cls.predictions.bias"  # the official code has a tensor under two names
OTHER_NAME = "text_encoder.cls.predictions.decoder.bias"
UNREAD = ("*.position_ids", "*.relative_position_index", TWICE, "video_frame_proj.*")  # the first two follow from sizes


def make_video_swin(*, hub: str | None = None, width: int | None, **sizes: object) -> VideoSwin:
    """A video encoder, fresh or inflated from a Swin transformer of the hub.

    Args:
        hub: its name, or a folder in that format; null for fresh weights.
        width: of the first level, for fresh weights; null for a Swin of the hub, which has its own.
        **sizes: the other arguments of `VideoSwin`.

    Raises:
        ValueError: the Swin is of another depth, or both or none of `hub` and `width` are given.
        ConnectionError: the hub cannot be reached and the weights are not in its cache.
    """
    if (hub is None) == (width is None):
        raise ValueError(f"video: hub ({hub!r}) or width ({width}) must be given, and the other one must be null.")
    if hub is None:
        return VideoSwin(width=width, **sizes)
    swin = from_pretrained(SwinModel, hub, partial(_published_architecture, hub), unused=("classifier.*",))
    encoder = VideoSwin(width=swin.config.embed_dim, **sizes)
    load_strictly(encoder, inflated(from_hub(swin.state_dict()), encoder), hub)
    return encoder


def _published_architecture(hub: str) -> SwinModel:
    if hub not in PUBLISHED:
        raise ValueError(f"the sizes of {hub!r} are not written out; known without its files: {[*PUBLISHED]}.")
    config = SwinConfig(**PUBLISHED[hub])
    config.embed_dim, config.hidden_size = rehearsal.width(config.embed_dim), rehearsal.width(config.hidden_size)
    return SwinModel(config)


def from_hub(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state dict of a `SwinModel` under the names of the authors of Swin, with one projection for q, k and v."""
    found = {}
    for name, x in state.items():
        for pattern, ours in FROM_HUB:
            name = re.sub(pattern, ours, name)
        found[name] = x
    for name in [name for name in found if ".attention.q_proj." in name]:
        parts = [found.pop(name.replace("q_proj", f"{part}_proj")) for part in "qkv"]
        found[name.replace("attention.q_proj", "attn.qkv")] = torch.cat(parts)
    return found


def inflated(state: Mapping[str, Tensor], encoder: VideoSwin) -> dict[str, Tensor]:
    """A state dict for a video encoder from that of a Swin transformer for pictures, as the official code makes it.

    Blocks and mergings are taken in order. A patch of pixels is repeated to the larger one, over its area; bias tables
    are scaled to the window (bicubic) and repeated over time. The local branch begins as the last merging and norm.

    Args:
        state: under the names of the authors of Swin; their head and what they count are left out.
        encoder: what it is for.

    Raises:
        ValueError: the Swin has another number of blocks or mergings.
    """
    own, found = encoder.state_dict(), {}
    for part in (r"layers\.\d+\.blocks\.\d+\.", r"layers\.\d+\.downsample\."):
        theirs, ours = (_in_order(part, names) for names in (state, own))
        if len(theirs) != len(ours):
            raise ValueError(f"the Swin has {len(theirs)} of {part!r}, but the video encoder {len(ours)}: build alike.")
        for old, new in zip(theirs, ours, strict=True):
            found |= {new + name.removeprefix(old): x for name, x in state.items() if name.startswith(old)}
    found |= {name: x for name, x in state.items() if name.startswith(("patch_embed.", "norm."))}
    last = _in_order(r"layers\.\d+\.downsample\.", state)[-1]
    found |= {f"local_feat_proj.{name.removeprefix(last)}": x for name, x in state.items() if name.startswith(last)}
    found |= {f"norm_local.{name}": state[f"norm.{name}"] for name in ("weight", "bias")}
    frames, *patch = encoder.patch
    kernel = found["patch_embed.proj.weight"]
    times = [side // old for side, old in zip(patch, kernel.shape[2:], strict=True)]
    found["patch_embed.proj.weight"] = kernel[:, :, None].repeat(1, 1, frames, *times) / (frames * math.prod(times))
    for name in [name for name in found if name.endswith("relative_position_bias_table")]:
        found[name] = _repeated(found[name], encoder.get_submodule(name.rpartition(".")[0]).window)
    return {name: x for name, x in found.items() if not name.endswith(("relative_position_index", "attn_mask"))}


def _in_order(pattern: str, names: Mapping[str, Tensor]) -> list[str]:
    """The different beginnings that fit a pattern, in the order of their numbers."""
    found = {match[0] for name in names if (match := re.match(pattern, name))}
    return sorted(found, key=lambda name: [int(number) for number in re.findall(r"\d+", name)])


def _repeated(table: Tensor, window: tuple[int, int, int]) -> Tensor:
    """A bias table of square windows of pictures, for windows of videos."""
    side = math.isqrt(len(table))
    frames, *size = (2 * length - 1 for length in window)
    flat = rearrange(table, "(h w) heads -> 1 heads h w", h=side)
    if size != [side, side]:
        flat = F.interpolate(flat, size=size, mode="bicubic")
    return rearrange(flat, "1 heads h w -> (h w) heads").repeat(frames, 1)


def with_windows(state: Mapping[str, Tensor], network: nn.Module) -> dict[str, Tensor]:
    """A state dict whose bias tables are scaled (bicubic) to windows of another number of frames.

    The official code's `change_window`. Rows and columns of the windows have to be equal.

    Raises:
        ValueError: they are not.
    """
    found, own = dict(state), network.state_dict()
    for name in [name for name in state if name.endswith("relative_position_bias_table") and name in own]:
        if len(state[name]) != len(own[name]):
            _, height, side = network.get_submodule(name.rpartition(".")[0]).window
            area = (2 * height - 1) * (2 * side - 1)
            if len(state[name]) % area:
                raise ValueError(
                    f"{name} has {len(state[name])} rows, expected a multiple of {area}: windows of {height} x {side} "
                    "patches, as in the network; only their frames may be others."
                )
            flat = rearrange(state[name].float(), "(t n) heads -> 1 heads t n", n=area)
            scaled = F.interpolate(flat, size=(len(own[name]) // area, area), mode="bicubic")
            found[name] = rearrange(scaled, "1 heads t n -> (t n) heads")
    return found


def read_official(path: Path) -> dict[str, Tensor]:
    """The state dict in an official checkpoint, read without running any code of it.

    Raises:
        ValueError: the file holds more than tensors, or is no checkpoint of LF-VILA.
    """
    state = read_checkpoint(path)
    if not isinstance(state, Mapping) or not any(str(name).startswith("video_encoder.") for name in state):
        begins = ", ".join(map(str, [*state][:3])) if isinstance(state, Mapping) else type(state).__name__
        raise ValueError(
            f"{path} is no checkpoint of LF-VILA, whose keys begin with 'video_encoder.' and others; it has {begins}. "
            "A state dict within it, or one whose keys have a prefix, has to be taken out first."
        )
    if strange := [str(name) for name, x in state.items() if not isinstance(x, Tensor)]:
        raise ValueError(f"{path} has {strange[0]}, which is no tensor: expected a state dict alone.")
    return dict(state)


def load_official(network: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Load an official checkpoint into `LongVideoText` or `VideoClassifier`, in whatever precision it is.

    Of stage one it has heads that nothing reads there; they are left out.

    Raises:
        ValueError: it is of another architecture or stage.
    """
    unused = [] if hasattr(network, "video_token_pos") else ["text_encoder.cls.*", "text_encoder.bert.pooler.*"]
    load_strictly(network, ours(state, network), "the official checkpoint", unused=unused)


def ours(state: Mapping[str, Tensor], network: nn.Module) -> dict[str, Tensor]:
    """An official checkpoint under our names, in single precision, with windows of as many frames as the network has.

    Raises:
        ValueError: see `with_windows`.
    """
    names = {name: name.replace(HEAD, OUR_HEAD) for name in state}
    read = {name: x for name, x in state.items() if not any(fnmatch(name, each) for each in UNREAD)}
    renamed = {names[name]: x.float() if x.is_floating_point() else x for name, x in read.items()}
    return with_windows(renamed, network)


def official(network: nn.Module) -> dict[str, Tensor]:
    """The state dict under the official names."""
    found = {name.replace(OUR_HEAD, HEAD): x for name, x in network.state_dict().items()}
    return found | ({TWICE: found[OTHER_NAME]} if OTHER_NAME in found else {})
