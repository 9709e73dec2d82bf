"""Weights that others have trained: official checkpoints of HD-VILA, and a ResNet of the Hugging Face hub."""

import re
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

from torch import Tensor
from transformers import ResNetConfig, ResNetModel

from lightning_modules.hd_vila.network import HdVila, ResNet
from lightning_modules.layers.published import from_pretrained, load_strictly, read_checkpoint
from lightning_modules.rehearsal import width

# What an official checkpoint holds and nothing reads, at least in stage one or two (shell patterns).
UNREAD = (
    "cnn_low.layer4.*",
    "timesformer.norm.*",
    "transformer.bert.pooler2.*",  # of stage two, whose pretraining gives it no gradient
    "transformer.bert.visual_embeddings.position_embeddings.weight",
    "transformer.cls.seq_relationship.*",
    "*.position_ids",
)
# What stage two adds, or a task; features are learned and read without it.
FUSION = (
    "transformer.bert.encoder.layer.*",
    "transformer.bert.visual_embeddings.*",
    "transformer.cls.*",
)
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
    if not isinstance(state, Mapping) or "transformer.t_proj.weight" not in state:
        raise ValueError(f"{path} is no checkpoint of HD-VILA: it has no transformer.t_proj.weight.")
    return dict(state)


def load_official(network: HdVila, state: Mapping[str, Tensor]) -> None:
    """Take over an official state dict. A network of features takes that of stage two as well, as the authors do.

    Raises:
        ValueError: a parameter has no place, or stays unset, or has another shape.
    """
    load_strictly(network, state, "the official checkpoint", unused=(*UNREAD, *unread_fusion(network)))


def unread_fusion(network: HdVila) -> Sequence[str]:
    """Names of stage two that a network of features has no place for."""
    return FUSION if network.task == "contrast" else ()


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
