"""A small network and batches, for the tests of this paper."""

import torch
from pytorch_lightning import LightningDataModule

from lightning_modules.visual_parsing.answering import Answering
from lightning_modules.visual_parsing.module import VisualParsing

SWIN = {
    "image_size": 32, "patch_size": 4, "embed_dim": 8, "depths": [1, 2], "num_heads": [2, 2], "window_size": 4,
    "mlp_ratio": 2.0, "drop_path_rate": 0.0, "initializer_range": 0.2,
}  # fmt: skip
CNN = {"stem_width": 8, "widths": [8, 16], "depths": [1, 1], "block": "basic"}
VISUAL = {
    "kind": "swin", "windows": "one", "pool": False, "swin": {"hub": None, "sizes": SWIN},
    "cnn": {"hub": None, "sizes": CNN},
}  # fmt: skip
BERT = {
    "hub": None,
    "sizes": {
        "vocab_size": 57, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
        "max_position_embeddings": 14, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0,
        "initializer_range": 0.2,
    },
}  # fmt: skip
PARTS = {
    "visual": VISUAL, "bert": BERT, "positions": 8, "position_deviation": 0.5, "feature_head": "mlp",
    "preprocess": {"pixel_scale": 255.0, "mean": [0.3] * 3, "std": [0.3] * 3},
}  # fmt: skip
TRAINED = {
    "visual_masking": {"how": "guided", "pivots": 1, "neighbours": 3}, "regression": "joint",
    "word_masking": 0.3, "unmatched": 0.5,
    "pairs": "matched", "losses": {"words": 1.0, "matching": 1.0, "features": 1.0},
    "ranked": 3, "parts": 1, "together": False,
}  # fmt: skip
WORDS = {"special": (0, 1, 56), "mask_id": 2, "vocabulary": 57}


def module(seed=0, **changes):
    torch.manual_seed(seed)
    found = VisualParsing(**PARTS | TRAINED | changes)
    found.words = WORDS
    return found


def answering(task="question", outputs=22, seed=0, **changes):
    torch.manual_seed(seed)
    return Answering(**PARTS | {"task": task, "outputs": outputs} | changes)


def batch(seed=0, rows=6, length=10, size=32):
    draw = torch.Generator().manual_seed(seed)
    token_ids = torch.randint(4, 56, (rows, length), generator=draw)
    token_ids[:, 0], token_ids[:, -1] = 1, 56
    there = torch.ones_like(token_ids, dtype=torch.bool)
    token_ids[0, 6], token_ids[0, 7:], there[0, 7:] = 56, 0, False
    images = torch.randint(0, 256, (rows, 3, size, size), generator=draw).to(torch.uint8)
    return {"images": images, "token_ids": token_ids, "attention_mask": there, "rows": torch.arange(rows)}


class Words:
    """A tokenizer of numbers."""

    pad_id, start_id, mask_id, end_id = 0, 1, 2, 56

    def __init__(self, words):
        self.words = words

    def __len__(self):
        return self.words


class Data(LightningDataModule):
    """One batch of captions, in place of a data module."""

    splits, tokenizer_name, evaluation_batch_size = {"train": None, "test": None}, "asked", 4
    kinds, answers = ("what", "how"), [str(number) for number in range(22)]

    def __init__(self, task="caption", words=57, text_length=14, rows=6):
        super().__init__()
        self.task, self.text_length, self.tokenizer = task, text_length, Words(words)
        self.batch = batch(rows=rows)

    def evaluation_batches(self, split):
        """All rows at once."""
        yield self.batch

    def retrieval(self, split):
        """Two captions of each picture."""
        texts = {name: torch.cat([self.batch[name], self.batch[name].roll(1, 0)])
                 for name in ("token_ids", "attention_mask")}  # fmt: skip
        count = len(self.batch["images"])
        pictures = torch.arange(count).repeat(2)
        return {"images": lambda rows: self.batch["images"][torch.as_tensor(rows)], "picture_of": pictures, **texts}
