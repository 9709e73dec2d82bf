"""Weights that others have trained: official checkpoints of HD-VILA, and a ResNet of the Hugging Face hub."""

import re
from collections.abc import Mapping
from functools import partial
from pathlib import Path

from torch import Tensor
from transformers import ResNetConfig, ResNetModel

from lightning_modules.hd_vila.network import HdVilaNetwork, ResNet
from lightning_modules.layers.published import from_pretrained, load_strictly, read_checkpoint
from lightning_modules.rehearsal import width

# What an official checkpoint holds and no task reads (shell patterns). Its `pooler2` had no gradient.
UNREAD = (
    "cnn_low.layer4.*",
    "timesformer.norm.*",
    "transformer.bert.visual_embeddings.position_embeddings.weight",
    "transformer.cls.seq_relationship.*",
    "*.position_ids",
)
OTHER_STREAMS = {  # what the hybrid has and a network of one stream does not read, as in the official code's branches
    "hybrid": (),
    "high": ("cnn_low.*", "grid_encoder_low.*", "timesformer.*", "grid_encoder_combine.*"),
    "low": ("cnn.*", "grid_encoder.*", "grid_encoder_combine.*"),
}
FEATURES = ("transformer.bert.pooler1.*", "transformer.t_proj.*", "transformer.v_proj.*")
WORDS = ("transformer.cls.predictions.*",)
ANSWERS = ("transformer.bert.pooler2.*", "transformer.classifier.*")
HUB = (  # patterns in the names of transformers, and what they are here
    (r"embedder\.embedder\.convolution", "conv1"),
    (r"embedder\.embedder\.normalization", "bn1"),
    (r"encoder\.stages\.(\d)\.layers\.(\d+)\.layer\.(\d)\.convolution", r"layer{}.\2.conv{}"),
    (r"encoder\.stages\.(\d)\.layers\.(\d+)\.layer\.(\d)\.normalization", r"layer{}.\2.bn{}"),
    (r"encoder\.stages\.(\d)\.layers\.(\d+)\.shortcut\.convolution", r"layer{}.\2.downsample.0"),
    (r"encoder\.stages\.(\d)\.layers\.(\d+)\.shortcut\.normalization", r"layer{}.\2.downsample.1"),
)


def read_official(path: Path) -> dict[str, Tensor]:
    """The state dict in an official checkpoint, of stage one or two, read without running any code of it.

    Raises:
        ValueError: the file is damaged, holds more than tensors, or is no checkpoint of the official code.
    """
    state = read_checkpoint(path)
    if not isinstance(state, Mapping) or "timesformer.pos_embed" not in state:
        begins = ", ".join(map(str, [*state][:3])) if isinstance(state, Mapping) else type(state).__name__
        raise ValueError(
            f"{path} is no checkpoint of HD-VILA: it has no timesformer.pos_embed, but {begins}. A state dict within "
            "it, or one whose keys have a prefix, has to be taken out first."
        )
    if strange := [str(name) for name, x in state.items() if not isinstance(x, Tensor)]:
        raise ValueError(f"{path} has {strange[0]}, which is no tensor: expected a state dict alone.")
    return dict(state)


def take_over(network: HdVilaNetwork, state: Mapping[str, Tensor], what: str) -> None:
    """Load what a network of any task was trained to, official or ours, as far as both have it.

    The encoder and the lower half of BERT must be there completely; of the hybrid, a network of one stream takes its
    own parts. The upper half and the heads keep their own values where a network of features gives none, and are left
    out where a network of features reads none.

    Raises:
        ValueError: a parameter has no place, or stays unset, or has another shape.
    """
    upper = [f"transformer.bert.encoder.layer.{number}.*" for number in range(network.half, 2 * network.half)]
    heads = (*FEATURES, *WORDS, *ANSWERS)
    fusion = (*upper, "transformer.bert.visual_embeddings.*")
    from_features = not any(name.startswith("transformer.bert.visual_embeddings.") for name in state)
    new = (*heads, *fusion) if from_features else heads
    unused = (*UNREAD, *OTHER_STREAMS[network.streams], *heads, *fusion)
    load_strictly(network, state, what, unused=unused, new=new)


def load_hub_resnet(resnet: ResNet, hub: str) -> None:
    """Take over a ResNet-50 of `transformers`, such as `microsoft/resnet-50`; stages that are not there are left out.

    Raises:
        ConnectionError: the hub cannot be reached and the weights are not in its cache.
        ValueError: it is of another architecture.
    """
    published = from_pretrained(ResNetModel, hub, partial(_drawn, hub), unused=("classifier.*",))
    state = {_renamed(name): x for name, x in published.state_dict().items()}
    load_strictly(resnet, state, hub, unused=[f"layer{stage}.*" for stage in range(resnet.depth + 1, 5)])


def _drawn(hub: str) -> ResNetModel:
    if hub != "microsoft/resnet-50":
        raise ValueError(f"the sizes of {hub!r} are not written out; known without its files: microsoft/resnet-50.")
    config = ResNetConfig()
    config.embedding_size, config.hidden_sizes = width(config.embedding_size), [width(x) for x in config.hidden_sizes]
    return ResNetModel(config)


def _renamed(name: str) -> str:
    module, _, tensor = name.rpartition(".")
    for pattern, here in HUB:
        if found := re.fullmatch(pattern, module):
            numbers = [int(number) + 1 for number in (found.groups() or ())[:1] + (found.groups() or ())[2:]]
            return f"{found.expand(here).format(*numbers)}.{tensor}"
    return name
