"""MAGVIT-v2: Language Model Beats Diffusion: Tokenizer is Key to Visual Generation (Yu et al., ICLR 2024, 2310.05737).

The tokenizer (`tokenizer.py`) has no codebook: a token is the signs of the channels of a latent, so that a vocabulary
of 2^18 costs nothing. The generators divide such a token into sub-tokens of a few bits, each with a small head.

- `Magvit2`, the paper's: MAGVIT's masked transformer, which predicts all sub-tokens of a place at once. The class is
  left out in a tenth of the training, so that decoding can be guided.
- `OpenMagvit2`, the autoregressive one of the re-implementation (`autoregressive.py`): token after token, and within
  one token its second sub-token after the first.

Read `video_tokens.generator.Generator` first; what is new here is how a token is divided, and `coding`: both give the
probabilities with which a clip's tokens are written as bits (`compression.py`).
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import pairwise
from math import log2, prod

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from lightning_modules.magvit2.autoregressive import Llama
from lightning_modules.magvit2.codecs import CODECS, tried
from lightning_modules.magvit2.compression import WORD, Asked, Coding, code_length, compress, decompress
from lightning_modules.magvit2.transformer import FactorisedBert
from lightning_modules.metrics.video import psnr, ssim
from lightning_modules.video_tokens.building import build
from lightning_modules.video_tokens.causal_tokenizer import CausalTokenizer
from lightning_modules.video_tokens.clips import ClipData
from lightning_modules.video_tokens.generator import Generator
from lightning_modules.video_tokens.masking import draw_codes, mask_ratio
from lightning_modules.video_tokens.perception import Judge
from lightning_modules.video_tokens.tasks import MASK, TASKS
from lightning_modules.video_tokens.training import stored

MEASURED = 256  # clips whose code is measured
CODED = 4  # clips that are really written, and read again
BESIDE = 64  # clips that codecs are tried on
ORDER = 0  # seed of the order in which tokens are written


class Coded(Generator):
    """What both generators have in common: their probabilities write clips as bits (`coding`), which is measured."""

    tokenizer_class = CausalTokenizer
    predictor = "lightning_modules.magvit2.predictor.Continuer"

    def build_judge(self, classes: int) -> Judge:
        """As `Generator`; no weight of the network is another because there is a judge."""
        with torch.random.fork_rng(devices=[]):
            return super().build_judge(classes)

    @property
    def factors(self) -> tuple[int, ...]:
        """2 to the number of bits of each sub-token."""
        return self.network.factors

    def coding(self, batch: int) -> Coding:
        """The probabilities of the tokens of clips of an unknown class, step by step."""
        raise NotImplementedError

    @torch.no_grad()
    def predictions(self, data: ClipData, device: torch.device) -> dict[str, Tensor]:
        """Beside those of `Generator`, what it takes to write the first `MEASURED` judged clips, `coded/...`.

        `bits`, with the generator's probabilities; `fixed`, as many for each token; `psnr` and `ssim` of what comes
        back; of the first clips `written`, the bits of the real coder, and `again`, whether all tokens came back. And
        what codecs make of the first clips, `codecs/<codec>/...`, see `codecs.tried`, unless these are too few.
        """
        found = super().predictions(data, device)
        parts: dict[str, list[Tensor]] = defaultdict(list)
        clips = []
        for video in first(self.judged_clips(data), MEASURED):
            tokens = self.encoded(video)
            again = self.drawn(tokens)
            parts["bits"].append(code_length(self.coding(len(video)), self.subtokens(tokens)))
            parts["fixed"].append(torch.full((len(video),), self.tokens * log2(self.codes)))
            parts["psnr"].append(psnr(again, video))
            parts["ssim"].append(ssim(again, video))
            clips.append(stored(video).cpu().numpy())
            if len(clips) == 1:
                written = [self.written(row[None]) for row in tokens[:CODED]]
                back = torch.cat([self.read_again(words) for words in written])
                parts["written"].append(torch.tensor([WORD * float(len(words)) for words in written]))
                parts["again"].append((back == tokens[:CODED]).all(1))
        beside = np.concatenate(clips)[:BESIDE]
        for codec in CODECS if len(beside) == BESIDE else ():
            found |= {f"codecs/{codec}/{name}": torch.from_numpy(x) for name, x in tried(beside, codec).items()}
        return found | {f"coded/{name}": torch.cat(part).cpu() for name, part in parts.items()}

    def written(self, tokens: Int[Tensor, "1 tokens"]) -> np.ndarray:
        """The tokens of one clip as words of 32 bits."""
        return compress(self.coding(1), self.subtokens(tokens))

    def read_again(self, words: np.ndarray) -> Int[Tensor, "1 tokens"]:
        """The tokens that `written` wrote."""
        return decompress(self.coding(1), words)

    def facts(self) -> dict:
        """Beside those of `Generator`, the pixels of a clip, and the numbers that the heads consist of."""
        frames, size = self.tokenizer.frames, self.tokenizer.size
        return super().facts() | {"pixels": frames * size**2, "head_parameters": self.network.head_parameters}


class Magvit2(Coded):
    """The paper's generator: MAGVIT's, with sub-tokens."""

    def transformer(self, network: Mapping[str, object], *, length: int, causal: bool) -> nn.Module:
        """The transformer.

        Raises:
            ValueError: the bits of the sub-tokens are not those of a token.
        """
        given = {"extra": self.vocabulary - self.codes, "length": length, "causal": causal}
        network = build(FactorisedBert, network, "model.network", **given)
        check_bits(network.factors, self.codes)
        return network

    def coding(self, batch: int) -> Coding:
        """As many steps as decoding has, each of the next tokens in a fixed order; the schedule says how many."""
        order = torch.from_numpy(np.random.default_rng(ORDER).permutation(self.tokens)).to(self.device)
        ends = self.known_after(self.decoding["steps"])
        labels = torch.full((batch,), self.classes, device=self.device)
        before = self.before(TASKS["unc"], labels, None)
        shown = torch.full((batch, self.tokens), self.special(MASK), device=self.device)
        for start, end in pairwise([0, *ends]):
            places, parts = order[start:end], []
            logits = self.network(torch.cat([before, shown], 1))
            for number, part in enumerate(self.split(logits)):
                parts.append((yield Asked(number, places, part[:, places].softmax(-1))))
            shown[:, places] = self.joined(parts)
        return shown

    def known_after(self, steps: int) -> list[int]:
        """How many tokens are known after each step that adds some."""
        progress = torch.arange(1, steps + 1) / steps
        left = (mask_ratio(progress, self.tokens, self.decoding["schedule"]) * self.tokens).floor().long()
        left[-1] = 0
        return sorted({self.tokens - n for n in left.tolist()} - {0})


class OpenMagvit2(Coded):
    """The autoregressive generator of Open-MAGVIT2, of a class or of none; the frames' rows are one grid."""

    possible_tasks = ("cg", "unc")

    def transformer(self, network: Mapping[str, object], *, length: int, causal: bool) -> nn.Module:
        """The transformer.

        Raises:
            ValueError: the bits of the sub-tokens are not those of a token.
        """
        time, height, width = self.tokenizer.grid
        given = {"classes": self.classes, "rows": time * height, "columns": width}
        network = build(Llama, network, "model.network", **given)
        check_bits(network.factors, self.codes)
        return network

    def loss(self, batch: dict[str, Tensor], name: str) -> Float[Tensor, ""]:
        """Cross-entropy of all tokens, summed over their sub-tokens."""
        tokens, _ = self.tokens_of(batch, name)
        labels = self.dropped(batch["labels"]) if TASKS[name].with_class else self.no_class(len(tokens))
        logits = self.network(labels, *self.subtokens(tokens))
        return self.surprise(logits, tokens, self.label_smoothing).mean()

    @torch.no_grad()
    def generate(
        self,
        video: Float[Tensor, "batch 3 frames h w"],
        labels: Int[Tensor, " batch"],
        name: str,
        seed: int = 0,
        **decoding,
    ) -> Int[Tensor, "batch tokens"]:
        """The tokens of new clips, one sub-token after another; of `video` the number of clips alone is looked at."""
        generator = torch.Generator(video.device).manual_seed(seed)
        options = self.decoding | decoding
        guided = bool(options["guidance"]) and TASKS[name].with_class
        if not TASKS[name].with_class:
            labels = self.no_class(len(labels))
        step = self.network.steps(torch.cat([labels, self.no_class(len(labels))]) if guided else labels)
        logits, found = next(step), []
        for _ in range(self.tokens):
            parts = []
            for _ in self.factors:
                if guided:
                    with_class, without = logits.chunk(2)
                    logits = with_class + options["guidance"] * (with_class - without)
                code, _ = draw_codes(logits, options["sampling_temperature"], generator)
                parts.append(code)
                if len(found) < self.tokens - 1 or len(parts) < len(self.factors):
                    logits = step.send(torch.cat([code, code]) if guided else code)
            found.append(self.joined(parts))
        return torch.stack(found, 1)

    def coding(self, batch: int) -> Coding:
        """One sub-token after another."""
        step = self.network.steps(self.no_class(batch))
        logits, found = next(step), []
        for place in range(self.tokens):
            parts = []
            for number in range(len(self.factors)):
                asked = Asked(number, torch.tensor([place], device=self.device), logits[:, None].softmax(-1))
                parts.append((yield asked)[:, 0])
                if place < self.tokens - 1 or number < len(self.factors) - 1:
                    logits = step.send(parts[-1])
            found.append(self.joined(parts))
        return torch.stack(found, 1)

    def no_class(self, number: int) -> Int[Tensor, " number"]:
        """What stands for an unknown class."""
        return torch.full((number,), self.classes, device=self.device)

    def facts(self) -> dict:
        """Beside those of `Coded`, a pass for each token."""
        return super().facts() | {"passes": self.tokens}

    def parameter_groups(self) -> list[dict]:
        """All matrices are decayed, embeddings among them; the norms' factors are not."""
        matrices = [p for p in self.network.parameters() if p.ndim >= 2]
        others = [p for p in self.network.parameters() if p.ndim < 2]
        return [{"params": matrices}, {"params": others, "weight_decay": 0.0}]

    def compiled_parts(self) -> Iterable[nn.Module]:
        """The blocks."""
        return [*self.network.spatial_blocks, *self.network.factorized_blocks]


def first(batches: Iterable[Tensor], count: int) -> Iterator[Tensor]:
    """As many rows of batches."""
    for batch in batches:
        yield batch[:count]
        count -= len(batch)
        if count <= 0:
            return


def check_bits(factors: Sequence[int], codes: int) -> None:
    """Refuse sub-tokens that do not make up a token.

    Raises:
        ValueError: see above.
    """
    if prod(factors) != codes:
        raise ValueError(
            f"network.bits make {prod(factors)} tokens, but the tokenizer has {codes}: their sum must be the logarithm "
            "of its vocabulary."
        )
