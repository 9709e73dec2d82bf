"""What the official code (microsoft/XPretrain, folder LF-VILA) computes with small weights drawn by name.

It was run on a CPU with torch 2.13.0, transformers 4.30.2 and stand-ins for what it imports from timm and mmcv; BERT's
masks were those of transformers 4.15 (-10000), which its Dockerfile has. Widths are 8 to 64; BERT has 14 layers (8 for
sentences, 4 for paragraphs), because the official code freezes 12 by their number; 8 frames of 192 x 320. In stage two
the sentence embedding was made before it is frozen.
"""

import zlib

import torch
from torch import Tensor, nn

LEVELS = [
    {"depth": 2, "heads": 1, "window": [2, 3, 5], "merge": True},
    {"depth": 2, "heads": 2, "window": [2, 3, 5], "merge": True},
    {"depth": 2, "heads": 4, "window": [2, 3, 5], "merge": False},
    {"depth": 1, "heads": 4, "window": [4, 3, 5], "merge": True},
    {"depth": 2, "heads": 4, "window": [8, 3, 5], "merge": False},
]
VIDEO = {"patch": [1, 8, 8], "width": 8, "levels": LEVELS, "local_window": 2, "drop_path": 0.0}
BERT = {
    "vocab_size": 50,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 14,
    "num_attention_heads": 4,
    "max_position_embeddings": 40,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}
NETWORK = {
    "video": VIDEO,
    "bert": {"hub": None, "sizes": BERT},
    "layers": [8, 4, 2],
    "sentences": 8,
    "clips": 4,
    "frames": 8,
    "size": [192, 320],
    "pool": [2, 3],
    "local": "last",
}
KEYS = torch.tensor([[0, 3], [1, 2], [3, 0], [2, 1]])
VALUES = torch.tensor([[0, 2], [3, 0], [1, 3], [1, 3]])
OTHER = torch.tensor([[1], [0], [2], [3]])
MASKED = {(0, 0, 1): 7, (2, 1, 2): 9, (3, 3, 1): 11, (3, 0, 3): 12}  # labels at row, sentence, word
LABELS = torch.tensor([1, 6, 0, 3])
CHOSEN = torch.tensor([1, 0])
SPANS = torch.tensor([[0, 1, 1, 0, 0, 0, 0, 0], [1, 1, 1, 1, 1, 1, 1, 0]])
FACTS = {  # the first values of each
    "map": [-0.541645408, -0.899297178, -1.74575698, -0.107930072, 0.964577198, -2.69881272],
    "map_square": 1.18214715,
    "local": [0.823797822, -0.17413342, 0.250521362, 0.356190562, -1.96591854, -1.75426483],
    "local_square": 1.08203208,
    "text": [0.0236787405, 0.0983388647, 0.00492152479, 0.0146548692, 0.296519518, 0.0625974908],
    "video": [-0.070721142, 0.00682382565, -0.121694222, 0.0863386691, -0.0326638445, 0.0113591999],
    "sentence": [-0.0248445217, 0.0939550027, -0.0513977557, -0.00443483936, 0.106920056, 0.0547186956],
    "clip": [0.199840561, 0.196137473, -0.0840922967, -0.0519950055, 0.125770837, -0.0417568684],
    "missing": [0.0210788194, 0.0966981575, 0.00855997112, 0.00962383486, 0.300770223, 0.0500051118],
    "whole": 2.78058219,
    "over time": 0.830153346,  # a quarter of it, rolled by 0
    "words": 4.44519711,
    "match": 7.13041115,  # ten times
    "word": [0.348853081, 3.49378252, 0.561416209, -0.609386504, -0.360102713, 3.3719635],
    "answers": [-1.20468891, -2.72854996, 0.667754292, -0.111720443, 1.53769863, -1.43676758],
    "answer": 3.51801348,
    "choices": [-1.41980457, -1.2388413, -1.20468891, -1.2607007],
    "choice": 0.636143446,
    "span": 1.99881995,
    "classes": [0.0433282964, 0.19372353, 0.206741482, -0.117117032, 0.129272476, -0.615913153],
    "class": 1.94808435,
}
GRADIENTS = {  # norms
    "align": {
        "video_encoder.patch_embed.proj.weight": 0.193879187,
        "video_encoder.layers.0.blocks.1.attn.relative_position_bias_table": 0.00219520601,
        "video_encoder.layers.3.blocks.0.attn.qkv.weight": 0.133252144,
        "text_encoder.bert.embeddings.word_embeddings.weight": 0.840432823,
        "sent_embedding.segment_embeddings.weight": 0.0227742475,
        "video_local_proj.weight": 0.638315082,
        "text_global_proj.weight": 0.0787253007,
    },
    "fuse": {
        "video_token_pos.t_pos_embed": 0.256548733,
        "text_encoder.bert.encoder.layer.12.attention.self.query.weight": 3.45440984,
        "text_encoder.bert.pooler.dense.weight": 3.13207912,
        "text_encoder.cls.predictions.transform.dense.weight": 5.72303438,
        "text_encoder.seq_relationship.weight": 1.83605039,
    },
    "answer": {
        "text_encoder.classifier.weight": 4.48742056,
        "video_encoder.layers.4.blocks.1.mlp.fc1.weight": 0.976982653,
        "text_encoder.bert.pooler.dense.weight": 5.15026522,
    },
    "choose": {
        "text_encoder.span_classifier.weight": 5.44119692,
        "text_encoder.classifier.weight": 0.284909219,
        "video_token_pos.s_pos_embed": 0.285146832,
    },
    "classify": {"video_global_proj.weight": 0.380239487, "classifier.weight": 0.333904088},
}


def drawn(name: str, shape: tuple[int, ...]) -> Tensor:
    """Weights of a name: normal, about 1 for gains of norms."""
    values = torch.randn(shape, generator=torch.Generator().manual_seed(zlib.crc32(name.encode())))
    return 1 + 0.1 * values if len(shape) == 1 and name.endswith("weight") else 0.2 * values


def fill(network: nn.Module, names: dict[str, Tensor]) -> None:
    """Give each parameter the weights of its official name."""
    with torch.no_grad():
        for name, x in names.items():
            if x.is_floating_point():
                x.copy_(drawn(name.replace("cls.predictions.decoder.bias", "cls.predictions.bias"), tuple(x.shape)))
    network.eval()


def batch() -> dict[str, Tensor]:
    """Four videos, already normalised, with paragraphs of four sentences of five words."""
    generator = torch.Generator().manual_seed(0)
    video = torch.randn(4, 3, 8, 192, 320, generator=generator)
    token_ids = torch.randint(5, 50, (4, 4, 5), generator=generator)
    mask = torch.ones_like(token_ids, dtype=torch.bool)
    mask[0, 1, 3:] = mask[1, 3, 4:] = False
    return {"video": video, "token_ids": token_ids * mask, "attention_mask": mask}
