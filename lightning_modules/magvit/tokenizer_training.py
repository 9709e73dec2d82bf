"""Trains MAGVIT's tokenizers; read `video_tokens/training.py` first, then `tokenizer.py`.

Paper and code differ: LeCam and reflected borders are in the paper's text and in no released setting, so `lecam` is 0
and `padding` zeros; the entropy term is in the code alone, and is on. The code's learning rate is a whole cosine times
a linear warm-up; here the cosine begins where the warm-up ends.
"""

from lightning_modules.magvit.tokenizer import Tokenizer
from lightning_modules.video_tokens.training import TokenizerTraining


class MagvitTokenizer(TokenizerTraining):
    """A 3D-VQ, or the 2D-VQ of single frames."""

    tokenizer_class = Tokenizer
