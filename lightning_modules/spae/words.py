"""The codebook whose entries are words: a frozen table of a language model's own input embeddings (section 3.1).

Read `WordTable.nearest` first. Two controls have the same words: `random` puts drawn vectors in the place of the
embeddings, `learned` a codebook that is trained, whose words are no more than names.
"""

from collections.abc import Collection, Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from lightning_modules.settings import Count

Source = Literal["language", "random", "learned"]
Scaling = Literal["none", "standard", "unit"]
CHUNK = 4096  # words whose distances are held at a time


class WordTable(nn.Module):
    """Words, their ids in the language model's vocabulary, and the vectors that stand for them.

    Args:
        words: in the order of their indices, each once.
        ids: of the words in the vocabulary of the language model.
        dim: of a vector.
        source: `language` for the embeddings of a language model, given by `fill`; `random` for drawn vectors of the
            standard normal distribution; `learned` for a codebook that is trained and begins with such vectors.
        scaling: of given embeddings and of drawn ones: `none`; `standard`, all shifted and scaled alike, so that over
            words the mean is 0 in each dimension and the variance is 1 over all of them; `unit`, each to length 1.

    Attributes:
        ids: of the words.
        embeddings: their vectors, as they are compared with latents.

    Raises:
        ValueError: there is no word, a word comes twice, or there is another number of ids.
    """

    def __init__(
        self,
        *,
        words: Sequence[str],
        ids: Sequence[int],
        dim: Count,
        source: Source = "language",
        scaling: Scaling = "standard",
    ):
        super().__init__()
        self.words, self.source, self.scaling = list(words), source, scaling
        if not self.words or len(set(self.words)) != len(self.words) or len(ids) != len(self.words):
            raise ValueError(
                f"a table of {len(self.words)} words, {len(set(self.words))} of them different, and {len(ids)} ids: "
                "expected at least one word, each once, with its id."
            )
        self.register_buffer("ids", torch.tensor(list(ids)))
        drawn = torch.zeros(len(words), dim) if source == "language" else torch.randn(len(words), dim)
        if source == "learned":
            self.embeddings = nn.Parameter(drawn)
        else:
            self.register_buffer("embeddings", scaled(drawn, scaling) if source == "random" else drawn)

    def __len__(self) -> int:
        return len(self.words)

    @property
    def dim(self) -> int:
        """Of a vector."""
        return self.embeddings.shape[1]

    def fill(self, embeddings: Float[Tensor, "vocabulary dim"]) -> None:
        """Take over a language model's input embeddings; the controls and a table of shapes keep theirs.

        Raises:
            ValueError: the vectors are of another length, or a word is beyond the vocabulary.
        """
        if self.source != "language" or self.embeddings.is_meta:
            return
        if embeddings.shape[1] != self.dim or int(self.ids.max()) >= len(embeddings):
            raise ValueError(
                f"the language model has {len(embeddings)} embeddings of length {embeddings.shape[1]}, but the table "
                f"is for length {self.dim} and ids up to {int(self.ids.max())}: set table.dim and the words to the "
                "model's."
            )
        self.embeddings.copy_(scaled(embeddings.detach()[self.ids].to(self.embeddings), self.scaling))

    @torch.no_grad()
    def nearest(self, latents: Float[Tensor, "*places dim"], chunk: int = CHUNK) -> Int[Tensor, "*places"]:
        """The word nearest to each latent by Euclidean distance; of words at the same distance the first.

        Distances to `chunk` words are held at a time, never the whole matrix of places and words.
        """
        flat = latents.reshape(-1, self.dim)
        best = flat.new_full((len(flat),), torch.inf)
        found = torch.zeros(len(flat), dtype=torch.long, device=flat.device)
        for start in range(0, len(self), chunk):
            words = self.embeddings[start : start + chunk]
            distances = torch.addmm(words.square().sum(1), flat, words.T, alpha=-2)  # without the latent's own square
            least, where = distances.min(1)
            closer = least < best
            best, found = torch.where(closer, least, best), torch.where(closer, where + start, found)
        return found.view(latents.shape[:-1])

    def embed(self, indices: Int[Tensor, "*places"]) -> Float[Tensor, "*places dim"]:
        """The vectors of words.

        Raises:
            ValueError: an index is none of the table's.
        """
        if indices.numel() and not (0 <= int(indices.min()) and int(indices.max()) < len(self)):
            raise ValueError(
                f"words numbered from {int(indices.min())} to {int(indices.max())}, expected 0 to {len(self) - 1}."
            )
        return F.embedding(indices, self.embeddings)

    def spelled(self, indices: Int[Tensor, "*places"]) -> list[str]:
        """Words as they are written, places in order."""
        return [self.words[index] for index in indices.flatten().tolist()]


def scaled(embeddings: Float[Tensor, "words dim"], scaling: Scaling) -> Float[Tensor, "words dim"]:
    """Embeddings as `WordTable` says; a table whose vectors are all alike stays as it is."""
    if scaling == "unit":
        return F.normalize(embeddings, dim=1)
    if scaling == "standard":
        centred = embeddings - embeddings.mean(0)
        return centred / centred.square().mean().sqrt().clamp_min(torch.finfo(centred.dtype).tiny)
    return embeddings


def chosen_words(
    ids: Sequence[int], words: Sequence[str], *, count: int | None, leave_out: Collection[str]
) -> tuple[list[int], list[str]]:
    """Which whole words of a vocabulary a table has: the first `count` that are not left out.

    Args:
        ids: of the whole words.
        words: as they are written; of words that are written alike the first is taken.
        count: of words; null for all.
        leave_out: words that no picture is to be told with.

    Raises:
        ValueError: a language model has no whole words, a word that is left out is not among them, or there are fewer
            than `count`.
    """
    if not words:
        raise ValueError(
            "the language model has no whole words: its vocabulary has pieces and signs only, so a table cannot be "
            "made of it. Choose a model with words."
        )
    if unknown := sorted(set(leave_out) - set(words)):
        raise ValueError(f"table.leave_out has {unknown[0]!r}, which is no whole word of the language model.")
    first = {word: number for number, word in reversed(list(zip(ids, words, strict=True)))}
    kept = [word for word in dict.fromkeys(words) if word not in set(leave_out)]
    if count is not None and count > len(kept):
        raise ValueError(
            f"table.words is {count}, but the language model has {len(kept)} whole words that are not left out: set it "
            "to at most that, or null."
        )
    kept = kept[:count]
    return [first[word] for word in kept], kept
