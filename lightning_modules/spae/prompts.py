"""Prompts made of token ids, and what a frozen language model answers to them (section 3.6).

A picture's words are ids of the model's vocabulary and stay that: joined to a text and cut again, they could come back
as other pieces. Read `Prompts.few_shot`, then `label_chances` and `continued`.

The protocol is that of Frozen and LQAE: task induction names the labels first; of each class there are so many inner
shots; repeats are further copies of all of them, one round after another. Where copies stand is our choice.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from lightning_modules import rehearsal
from lightning_modules.vision_language.causal import Language

ROWS = 64  # prompts of one length that are read at a time
StyleName = Literal["words", "lines"]
Pair = tuple[Sequence[int], Sequence[int]]  # ids of an input, and of its output


@dataclass(frozen=True)
class Style:
    """The texts between the words.

    Args:
        before: what task induction says before the first label; `between` two of them and `after` the last likewise.
        input: what comes before the input of a pair; `output` before its output, and `end` after that.
        stops: texts that end an answer.
    """

    before: str
    between: str
    after: str
    input: str
    output: str
    end: str
    stops: tuple[str, ...]


STYLES = {
    "words": Style("output is one", "or", ".", "input:", "output:", "", ("input:", ".")),  # of `lexicon`
    "lines": Style(
        "Each of the following inputs has an output, which is one of:", ",", "\n", "Input:", "\nOutput:", "\n", ("\n",)
    ),
}


class Prompts:
    """Builds prompts for one language model.

    Args:
        language: whose ids they consist of.
        style: a key of `STYLES`.
    """

    def __init__(self, language: Language, style: StyleName = "words"):
        self.language, self.style = language, STYLES[style]
        self.pieces = {name: language.encode(text) for name, text in vars(self.style).items() if name != "stops"}
        ids, words = language.whole_words()
        self._words = dict(zip(words, ids.tolist(), strict=True))

    def name(self, label: str) -> list[int]:
        """The ids of a label: one, if it is a whole word of the vocabulary.

        Raises:
            ValueError: the label is empty, or has a word that the language model does not know.
        """
        found = self._words.get(label.lower())
        ids = self.language.encode(f" {label}".rstrip()) if found is None else [found]
        known = self.language.tokenizer.unk_token_id not in ids or rehearsal.current is not None  # with other words
        if not ids or not known:
            close = get_close_matches(label.lower(), self._words, 1) or list(self._words)[:5]
            raise ValueError(
                f"the label {label!r} is made of tokens {ids}, which do not spell it: name the class with words that "
                f"the language model knows, such as {', '.join(close)}."
            )
        return ids

    def induction(self, labels: Sequence[Sequence[int]]) -> list[int]:
        """The sentence that names all labels, given by their ids."""
        found = list(self.pieces["before"])
        for number, label in enumerate(labels):
            found += [*(self.pieces["between"] if number else ()), *label]
        return found + self.pieces["after"]

    def pair(self, input_: Sequence[int], output: Sequence[int]) -> list[int]:
        """An input and its output."""
        return [*self.pieces["input"], *input_, *self.pieces["output"], *output, *self.pieces["end"]]

    def few_shot(
        self,
        pairs: Iterable[Pair],
        query: Sequence[int],
        labels: Sequence[Sequence[int]] = (),
        repeats: int = 0,
    ) -> list[int]:
        """A whole prompt, which ends where the query's output begins.

        Args:
            pairs: the context.
            query: the input that is asked about.
            labels: ids of all labels, for task induction; none without it.
            repeats: further copies of the context.
        """
        context = [token for pair in pairs for token in self.pair(*pair)] * (1 + repeats)
        induction = self.induction(labels) if labels else []
        return [
            *self.language.start, *induction, *context, *self.pieces["input"], *query, *self.pieces["output"]
        ]  # fmt: skip

    def answer(self, token_ids: Sequence[int]) -> str:
        """The text of what was written after a prompt, up to what would be the next pair."""
        text = self.language.decode(token_ids)
        for stop in self.style.stops:
            text = text.split(stop)[0]
        return text.strip()


def by_length(prompts: Sequence[Sequence[int]], device: torch.device) -> Iterator[tuple[list[int], Tensor]]:
    """Batches of prompts of equal length, and their places: so nothing is padded.

    Raises:
        ValueError: a prompt is empty.
    """
    places = defaultdict(list)
    for number, prompt in enumerate(prompts):
        places[len(prompt)].append(number)
    if 0 in places:
        raise ValueError(f"prompt {places[0][0]} is empty, expected at least one token.")
    for length in sorted(places):
        for start in range(0, len(places[length]), ROWS):
            rows = places[length][start : start + ROWS]
            yield rows, torch.tensor([list(prompts[row]) for row in rows], device=device)


@torch.no_grad()
def label_chances(
    language: Language, prompts: Sequence[Sequence[int]], names: Sequence[Sequence[Sequence[int]]]
) -> Float[Tensor, "prompts names"]:
    """Label-masked decoding: how likely each name of a prompt is, compared with its others.

    Args:
        language: the model.
        prompts: ids.
        names: for each prompt the ids of its names, as many for each; of a name with several tokens the chances are
            multiplied.

    Raises:
        ValueError: a prompt is empty, has another number of names, a name has no token, or both together are longer
            than the model's positions.
    """
    if len(counts := {len(each) for each in names}) > 1:
        raise ValueError(f"prompts have {sorted(counts)} names: give each the same number.")
    found = torch.zeros(len(prompts), counts.pop() if counts else 0)
    single = [number for number, each in enumerate(names) if all(len(name) == 1 for name in each)]
    for rows, token_ids in by_length([prompts[number] for number in single], language.embeddings.device):
        logits = language(token_ids, keep=1)[:, -1].float().cpu()
        places = [single[row] for row in rows]
        asked = torch.tensor([[name[0] for name in names[place]] for place in places])
        found[places] = logits.gather(1, asked).softmax(1)
    for number in sorted(set(range(len(prompts))) - set(single)):
        found[number] = chances(language, prompts[number], names[number])
    return found


def masked(
    language: Language, prompts: Sequence[Sequence[int]], names: Sequence[Sequence[Sequence[int]]]
) -> Int[Tensor, " prompts"]:
    """The place of the likeliest name among those of each prompt, see `label_chances`; of equals the first."""
    return label_chances(language, prompts, names).argmax(1)


@torch.no_grad()
def chances(language: Language, prompt: Sequence[int], names: Sequence[Sequence[int]]) -> Float[Tensor, " names"]:
    """How likely each name follows a prompt, compared with the others: names may have several tokens.

    Args:
        language: the model.
        prompt: ids.
        names: ids of each name.

    Raises:
        ValueError: a name has no token, or a prompt with a name is longer than the model's positions.
    """
    if not all(names):
        raise ValueError(f"name {[bool(name) for name in names].index(False)} has no token: give each class a name.")
    found = torch.zeros(len(names))
    for rows, token_ids in by_length([[*prompt, *name] for name in names], language.embeddings.device):
        asked = token_ids[:, len(prompt) :]
        logits = language(token_ids, keep=asked.shape[1] + 1)[:, :-1]
        found[rows] = logits.log_softmax(-1).gather(2, asked[..., None]).sum((1, 2)).float().cpu()
    return found.softmax(0)


@torch.no_grad()
def continued(
    language: Language,
    prompts: Sequence[Sequence[int]],
    length: int,
    allowed: Bool[Tensor, " vocabulary"] | None = None,
) -> Int[Tensor, "prompts length"]:
    """Free decoding: the likeliest tokens one after another, with the keys and values of earlier ones kept.

    Args:
        language: the model.
        prompts: ids.
        length: tokens to write.
        allowed: what may be written; None for the whole vocabulary.

    Raises:
        ValueError: a prompt is empty, or longer, with what is written, than the model's positions.
    """
    found = torch.zeros(len(prompts), length, dtype=torch.long)
    for rows, token_ids in by_length(prompts, language.embeddings.device):
        language.check_length(token_ids.shape[1] + length, "ask for fewer shots, repeats or words")
        step, new = language.cached(), token_ids
        for place in range(length):
            logits = step(new)
            if allowed is not None:
                logits = logits.masked_fill(~allowed.to(logits.device), -torch.inf)
            new = logits.argmax(1, keepdim=True)
            found[rows, place] = new[:, 0].cpu()
    return found


def exact(prompts: Prompts, asked: Sequence[Sequence[int]], names: Sequence[str]) -> Bool[Tensor, " prompts"]:
    """Whether free decoding writes exactly the name of the class; case does not count."""
    length = 1 + max(len(prompts.name(name)) for name in names)
    written = continued(prompts.language, asked, length).tolist()
    right = [prompts.answer(ids).lower() == name.lower() for ids, name in zip(written, names, strict=True)]
    return torch.tensor(right)
