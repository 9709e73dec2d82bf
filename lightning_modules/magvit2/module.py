"""MAGVIT-v2: "Language Model Beats Diffusion: Tokenizer is Key to Visual Generation" (Yu et al., ICLR 2024, 2310.05737).

The tokenizer (`tokenizer.py`) has no codebook: a token is the signs of a latent's channels, so that a vocabulary of 2^18
costs nothing. The generators divide such a token into sub-tokens of a few bits, each with a small head of its own.

- `Magvit2`, the paper's: MAGVIT's masked transformer, which predicts all sub-tokens of a place at once. The class is
  left out in a tenth of the training, so that decoding can be guided.
- `OpenMagvit2`, the autoregressive one of the re-implementation (`autoregressive.py`): token after token, and within
  one token its second sub-token after the first.

Read `video_tokens.generator.Generator` first; what is new here is how a token is divided, and `coding`: both give the
probabilities with which a clip's tokens are written as bits (`compression.py`).
"""

from collections.abc import Generator as Coroutine
from math import log2
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from lightning_modules.magvit2.autoregressive import Llama
from lightning_modules.magvit2.compression import Asked, code_length
from lightning_modules.magvit2.tokenizer import Tokenizer
from lightning_modules.magvit2.transformer import FactorisedBert
from lightning_modules.metrics.compute import count_parameters
from lightning_modules.validation import judged
from lightning_modules.video_tokens.clips import Clips
from lightning_modules.video_tokens.generator import Generator
from lightning_modules.video_tokens.masking import draw_codes, mask_ratio
from lightning_modules.video_tokens.tasks import MASK, TASKS
