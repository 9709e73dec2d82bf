"""Pictures that a frozen language model writes: progressive in-context denoising (section 3.6).

The context shows a condition and its target again and again, both as words, of which fewer and fewer were exchanged for
others; the query is the condition as it is, and what the model writes after it is the target without exchanged words,
if it goes on with what it sees. The pyramid is written layer by layer, each after what was written of the layers above
it.

`context: own` corrupts the query's own target, which the paper is recalled to do: the target stands in the prompt, but
never whole. `context: others` shows the pairs of other pictures instead. Read `denoised` first; the tasks on pictures
(`TASKS`) are the paper's by name, their sizes are ours.
"""

from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from lightning_modules.spae.documents import Draws
from lightning_modules.spae.prompts import Prompts, continued

CORRUPTION = 104  # purpose of random words, beside those of `documents` and `episodes`
GREY = 128  # where nothing is shown
Pictures = UInt8[Tensor, "pictures 3 size size"]
Words = Sequence[Int[Tensor, "pictures _"]]  # of each layer, as ids of the language model
Context = Literal["own", "others"]


def inpainting(pictures: Pictures) -> Pictures:
    """Pictures whose middle is missing, half as high and wide as they are."""
    found, size = pictures.clone(), pictures.shape[-1]
    found[..., size // 4 : size - size // 4, size // 4 : size - size // 4] = GREY
    return found


def outpainting(pictures: Pictures) -> Pictures:
    """Pictures of which only the middle is left, half as high and wide as they are."""
    size = pictures.shape[-1]
    middle = slice(size // 4, size - size // 4)
    found = torch.full_like(pictures, GREY)
    found[..., middle, middle] = pictures[..., middle, middle]
    return found


def deblurring(pictures: Pictures) -> Pictures:
    """Blurred pictures: means over squares of an eighth of the side."""
    side = max(1, pictures.shape[-1] // 8)
    means = torch.nn.functional.avg_pool2d(pictures.float(), side, ceil_mode=True)
    size = pictures.shape[-2:]
    return means.round().byte().repeat_interleave(side, -2).repeat_interleave(side, -1)[..., : size[0], : size[1]]


def translation(pictures: Pictures) -> Pictures:
    """Pictures that were moved to the right by a quarter of their side."""
    shift = pictures.shape[-1] // 4
    found = torch.full_like(pictures, GREY)
    found[..., shift:] = pictures[..., : pictures.shape[-1] - shift]
    return found


def rotation(pictures: Pictures) -> Pictures:
    """Pictures turned clockwise by a quarter."""
    return pictures.rot90(-1, (-2, -1))


TASKS: dict[str, Callable[[Pictures], Pictures]] = {
    task.__name__: task for task in (inpainting, outpainting, deblurring, translation, rotation)
}


def corrupted(
    words: Int[Tensor, "*places"], share: float, vocabulary: Int[Tensor, " words"], draws: Draws
) -> Int[Tensor, "*places"]:
    """Words of which a share was exchanged for any of the vocabulary: so many of each row, not so many on average.

    Args:
        words: as ids.
        share: of each row that is exchanged.
        vocabulary: ids that may be drawn.
        draws: random numbers.
    """
    rows = words.reshape(-1, words.shape[-1]).clone()
    count = round(share * rows.shape[1])
    for row in rows:
        places = torch.from_numpy(draws.order(rows.shape[1])[:count])
        row[places] = vocabulary[torch.from_numpy(draws.integers(len(vocabulary), count))]
    return rows.view_as(words)


def falling(first: float, last: float, count: int) -> list[float]:
    """Shares of corruption, each as much less than the one before it.

    Raises:
        ValueError: they do not fall, or are no shares.
    """
    if not 0 <= last <= first <= 1:
        raise ValueError(f"corruption from {first} to {last}: expected shares of words, the first not below the last.")
    return np.linspace(first, last, count).tolist()


def denoised(
    prompts: Prompts,
    conditions: Words,
    targets: Words,
    vocabulary: Int[Tensor, " words"],
    *,
    shares: Sequence[float],
    context: Context,
    seed: int,
) -> dict[str, list[Int[Tensor, "pictures _"]]]:
    """The words of the targets as a language model writes them, layer by layer.

    Args:
        prompts: of the model.
        conditions: words of each layer, as ids.
        targets: likewise.
        vocabulary: ids that may be written, and that words are exchanged for.
        shares: of words that are exchanged, one for each pair of the context.
        context: `own` or `others`, see above.
        seed: of what is exchanged.

    Returns:
        `denoised`, the words of each layer that were written; `copied`, those of the last pair's output; `voted`, the
        commonest word of each place in all outputs: what can be known from an own context without the condition.

    Raises:
        ValueError: there are fewer than two pictures for a context of others, or a prompt is longer than the model's
            positions.
    """
    count = len(targets[0])
    if context == "others" and count < 2:
        raise ValueError(f"context is others, but there is {count} picture: give two at least, or set it to own.")
    found: dict[str, list[Tensor]] = {"copied": [], "voted": []}

    def prompts_of(layer: int) -> list[list[int]]:
        condition, target = up_to(conditions, layer), up_to(targets, layer)
        new, asked, outputs = targets[layer].shape[1], [], []
        for row in range(count):
            draws = Draws((seed, CORRUPTION), (layer, row))
            pairs = [
                (corrupted(condition[at], share, vocabulary, draws), corrupted(target[at], share, vocabulary, draws))
                for at, share in zip(_shown(row, count, len(shares), context), shares, strict=True)
            ]
            asked.append(prompts.few_shot([(u.tolist(), v.tolist()) for u, v in pairs], condition[row].tolist()))
            outputs.append(torch.stack([v[len(v) - new :] for _, v in pairs]))
        found["copied"].append(torch.stack([each[-1] for each in outputs]))
        found["voted"].append(torch.stack([each.mode(0).values for each in outputs]))
        return asked

    written = layer_by_layer(prompts, [words.shape[1] for words in targets], prompts_of, vocabulary)
    return {"denoised": written, **found}


def _shown(row: int, count: int, pairs: int, context: Context) -> list[int]:
    """The pictures of a context: the query's own, or those after it."""
    if context == "own":
        return [row] * pairs
    return [(row + 1 + step % (count - 1)) % count for step in range(pairs)]


def from_names(
    prompts: Prompts,
    names: Sequence[str],
    words: Words,
    wanted: Sequence[str],
    vocabulary: Int[Tensor, " words"],
) -> list[Int[Tensor, "wanted _"]]:
    """The words of pictures that names ask for, layer by layer: digits from a text, for example.

    Args:
        prompts: of the model.
        names: of the pictures of the context.
        words: of these pictures, of each layer, as ids.
        wanted: the names that are asked for.
        vocabulary: ids that may be written.

    Raises:
        ValueError: a name that is asked for has no picture in the context, or a prompt is longer than the positions.
    """
    if missing := sorted(set(wanted) - set(names)):
        raise ValueError(f"no picture of the context is called {missing[0]!r}; called so are {', '.join(set(names))}.")

    def prompts_of(layer: int) -> list[list[int]]:
        pairs = [(prompts.name(name), row) for name, row in zip(names, up_to(words, layer).tolist(), strict=True)]
        return [prompts.few_shot(pairs, prompts.name(name)) for name in wanted]

    return layer_by_layer(prompts, [each.shape[1] for each in words], prompts_of, vocabulary)


def layer_by_layer(
    prompts: Prompts,
    sizes: Sequence[int],
    prompts_of: Callable[[int], list[list[int]]],
    vocabulary: Int[Tensor, " words"],
) -> list[Int[Tensor, "pictures _"]]:
    """The words of each layer, written after those of the layers above it.

    Args:
        prompts: of the model.
        sizes: number of words of each layer.
        prompts_of: the prompts of a layer, which end where the first layer's words are to follow.
        vocabulary: ids that may be written.

    Raises:
        ValueError: a prompt is longer, with what is written, than the model's positions.
    """
    allowed = torch.zeros(len(prompts.language.embeddings), dtype=torch.bool)
    allowed[vocabulary] = True
    written: list[Tensor] = []
    for layer, size in enumerate(sizes):
        asked = prompts_of(layer)
        before = torch.cat(written, 1).tolist() if written else [[] for _ in asked]
        asked = [prompt + words for prompt, words in zip(asked, before, strict=True)]
        written.append(continued(prompts.language, asked, size, allowed))
    return written


def up_to(words: Words, layer: int) -> Int[Tensor, "pictures _"]:
    """The words of the layers from the first to this one, behind one another."""
    return torch.cat(list(words[: layer + 1]), 1)


def agreement(found: Sequence[Int[Tensor, "pictures _"]], targets: Words) -> Float[Tensor, " pictures"]:
    """The share of each picture's words that are the target's."""
    return (torch.cat(list(found), 1) == torch.cat(list(targets), 1)).double().mean(1)
