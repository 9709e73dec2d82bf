"""What the official code (microsoft/XPretrain, folder hd-vila) computes with small weights drawn by name.

It was run on a CPU with torch 2.13.0 and stand-ins for what it imports from mmcv and transformers 2. `ResNet` had
base_channels 8; BERT 32 channels, 4 layers and 4 heads; TimeSformer 2 blocks.
"""

import math
import zlib

import torch
from torch import Tensor

from lightning_modules.hd_vila.network import HdVilaNetwork
from lightning_modules.layers.bert import make_bert

SIZES = {
    "vocab_size": 60,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "max_position_embeddings": 20,
}
FACTS = {
    "hybrid": {
        "map": [1.7095503, 0.96474147, -0.15136234, -0.092266798, 2.0055149, 1.30574],
        "video": [0.011295396, 0.22110805, 0.21371628, 0.033069395, 0.21142633, 0.1817818],
    },
    "high": {
        "map": [0.48658931, 0.45288563, 0.58220428, 0.69311583, 2.6016469, 1.979658],
        "video": [-0.064318597, 0.29112381, 0.015842579, -0.048152853, 0.28095135, 0.032462444],
    },
    "low": {
        "map": [2.0819926, 1.7312523, -4.7839003, -2.9211752, 2.3670037, 1.3585936],
        "video": [0.086485982, -0.039314102, 0.027355241, 0.083093718, -0.049070351, 0.0398717],
    },
    "text": [0.15891653, 0.096027501, -0.28482729, -0.027535664, 0.024806267, 0.0066841622],
    "contrast": 1.4350278,  # temperature 0.05, mean of both directions
    "retrieval": 2.1218586,  # NCEContrastiveLoss, temperature 0.08
    "words": {"lse": 4.6235118, "mean": 4.8700686, "max": 4.8168917},
    "answers": [
        0.49211237,
        0.91067576,
        1.2347472,
        0.82210779,
        1.8215545,
        0.21808487,
        0.54304695,
        1.0902138,
        0.3524735,
        0.87030113,
    ],
    "choice": [0.49211237, 0.19836587],
}
GRADIENTS = {  # norms
    "contrast": {
        "cnn.conv1.weight": 3.954845,
        "cnn_low.layer3.0.conv2.weight": 7.4010039,
        "timesformer.time_embed": 1.2837928,
        "timesformer.blocks.0.temporal_fc.weight": 4.2226335,
        "transformer.bert.embeddings.word_embeddings.weight": 1.1119259,
        "transformer.v_proj.weight": 5.3120925,
    },
    "words": {
        "transformer.cls.predictions.decoder.weight": 3.2429389,
        "transformer.bert.encoder.layer.3.output.dense.weight": 1.5519152,
        "transformer.bert.visual_embeddings.col_position_embeddings.weight": 0.17009289,
        "grid_encoder_combine.0.weight": 1.622295,
    },
}
# global step, learning rate: 1000 steps, lr 5e-5, warm-up 0.1
LINEAR = [
    (1, 5e-07),
    (50, 2.5e-05),
    (100, 5e-05),
    (101, 4.994444e-05),
    (550, 2.5e-05),
    (999, 5.555556e-08),
    (1000, 1e-08),
]
# 200 epochs of 141 steps, lr 1e-5, warm-up 0.01, milestones 32, 64, 128 and 256
MILESTONES = [
    (1, 3.546099e-08),
    (141, 5e-06),
    (282, 1e-05),
    (283, 1e-05),
    (4511, 1e-05),
    (4512, 5e-06),
    (9024, 2.5e-06),
    (18048, 1.25e-06),
    (28200, 1.25e-06),
]
PAST_ALL = 1.25e-06  # step 28,100 of 28,200 in epoch 16, milestones 8 and 16


def built(task: str = "contrast", **options) -> HdVilaNetwork:
    """A small network with the weights that were given to the official one."""
    timesformer = {"depth": 2, "heads": 4}
    network = HdVilaNetwork(make_bert(sizes=SIZES), resnet={"width": 8}, timesformer=timesformer, task=task, **options)
    network.load_state_dict(filled(network.state_dict()))
    return network.eval()


def filled(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Each tensor drawn with the checksum of its name as the seed."""
    found = {}
    for name, x in state.items():
        if not x.is_floating_point():
            found[name] = x
            continue
        seed = zlib.crc32(name.replace("decoder.bias", "bias").encode())  # one parameter of two names
        drawn = torch.randn(x.shape, generator=torch.Generator().manual_seed(seed))
        if name.endswith("running_var"):
            drawn = 1 + 0.1 * drawn.abs()
        elif x.ndim == 1:
            drawn = 0.1 * drawn + (1.0 if name.endswith("weight") else 0.0)
        elif "embed" in name:
            drawn = 0.5 * drawn
        else:
            drawn = drawn / math.sqrt(x[0].numel())
        found[name] = drawn
    return found


def inputs() -> dict[str, Tensor]:
    """Two videos of two clips of 7 frames, two sentences, and labels of three masked words."""
    generator = torch.Generator().manual_seed(0)
    middle = torch.randint(0, 256, (2, 2, 3, 128, 192), generator=generator).float()
    others = torch.randint(0, 256, (2, 2, 6, 3, 32, 48), generator=generator).float()
    token_ids, mask = torch.randint(5, 60, (2, 8), generator=generator), torch.ones(2, 8, dtype=torch.bool)
    token_ids[0, 6:], mask[0, 6:] = 0, False
    labels = torch.full((2, 8), -100)
    labels[0, 2], labels[1, 3], labels[1, 7] = 7, 11, 13
    mean, std = (torch.tensor(x)[:, None, None] for x in ((123.675, 116.28, 103.53), (58.395, 57.12, 57.375)))
    return {
        "middle": (middle.flatten(0, 1) - mean) / std,
        "others": (others.flatten(0, 1) - mean) / std,
        "token_ids": token_ids,
        "mask": mask,
        "labels": labels,
    }
