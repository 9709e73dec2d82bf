"""MAGVIT: Masked Generative Video Transformer (Yu et al., CVPR 2023, arXiv 2212.05199).

A clip is a grid of tokens (`tokenizer.py`), and one transformer fills in those that are masked. A task is a part of the
clip that is given. The part is filled up to a whole clip and becomes tokens itself; where a token is a condition, these
stand in place of the mask, and are refined like any other (COMMIT). Showing the clip's own tokens there instead, as
MaskGIT does, tells in training what is to be predicted, as each token has seen the whole clip. At test time a clip is
decoded in 12 steps, all tokens at once.

Read `video_tokens.generator.Generator` first: all of it is MAGVIT's. Later papers build on it.

Where paper and official code differ, the code's way is the default: counts of masked tokens are rounded down, one ratio
serves a whole batch, the decoupled weight decay is on kernels alone, and inpainting is announced as outpainting
(`inpainting_token`). The code tokenises clips and conditions in every step. Here `keep_tokens` computes those of a row
once, which is the same where clips are not augmented; at tiny size a step would otherwise be mostly the tokenizer's.
"""

from lightning_modules.magvit.tokenizer import Tokenizer
from lightning_modules.video_tokens.generator import Generator


class Magvit(Generator):
    """The generator of 3D-VQ tokens."""

    tokenizer_class = Tokenizer
