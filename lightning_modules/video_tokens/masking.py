"""What the transformer is shown of a clip's tokens, in training and while it decodes (COMMIT and its alternatives).

Official: videogvt/train_lib/mask_utils.py, mask_schedule.py and parallel_decode.py.
"""

import math
from collections.abc import Callable, Collection
from typing import Literal, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

Schedule = Literal["cosine", "uniform", "exp", "log", "square", "cubic"]
Conditioning = Literal["commit", "latent", "fixed", "prefix", "none"]
Part = Literal["mask", "refine", "recons"]
SMALLEST = 1e-6


def mask_ratio(progress: Float[Tensor, "*shape"], tokens: int, schedule: str = "cosine") -> Float[Tensor, "*shape"]:
    """Share of tokens that is masked, between 1e-6 and 1.

    Args:
        progress: 0 where all are masked, 1 where none is.
        tokens: of a clip, for `exp` and `log`.
        schedule: cos(pi r / 2), `uniform` 1 - r, `exp` 1 - N^(r - 1), `log` -log2 r / log2 N, `square` 1 - r^2, `cubic`
            1 - r^3.

    Raises:
        ValueError: the schedule is unknown.
    """
    ratios = {
        "cosine": lambda r: torch.cos(math.pi / 2 * r),
        "uniform": lambda r: 1 - r,
        "exp": lambda r: 1 - torch.exp2(-math.log2(tokens) * (1 - r)),
        "log": lambda r: -torch.log2(r) / math.log2(tokens),
        "square": lambda r: 1 - r**2,
        "cubic": lambda r: 1 - r**3,
    }
    if schedule not in ratios:
        raise ValueError(f"schedule ({schedule!r}) must be one of {', '.join(ratios)}.")
    return ratios[schedule](progress).clamp(SMALLEST, 1)


class Given(NamedTuple):
    """A condition as tokens.

    Attributes:
        tokens: of the condition, filled up to a whole clip.
        where: which of them are a condition.
    """

    tokens: Int[Tensor, "batch tokens"]
    where: Bool[Tensor, "#batch tokens"]


class Masked(NamedTuple):
    """What is shown and asked.

    Attributes:
        shown: tokens, conditions and masks; the masks are `mask`.
        asked: weight of each position in the loss; while decoding, 1 where the token is not known yet.
    """

    shown: Int[Tensor, "batch tokens"]
    asked: Float[Tensor, "batch tokens"]


def lowest(scores: Float[Tensor, "batch tokens"], count: Int[Tensor, "#batch"]) -> Bool[Tensor, "batch tokens"]:
    """The `count` positions of each row with the lowest scores, and those that equal the last of them."""
    cut = scores.sort(-1).values.gather(-1, (count - 1).clamp_min(0).expand(len(scores)).unsqueeze(-1))
    return (scores <= cut) & (count > 0).unsqueeze(-1)


def mask_tokens(
    tokens: Int[Tensor, "batch tokens"],
    given: Given | None,
    ratio: Float[Tensor, "#batch"],
    scores: Float[Tensor, "batch tokens"],
    *,
    mask: int,
    conditioning: Conditioning = "commit",
    parts: Collection[Part] = ("mask", "refine", "recons"),
    most: Int[Tensor, " batch"] | None = None,
) -> Masked:
    """Mask the positions with the lowest scores (Eq. 3; `random_mask` with `cond->input` and the other modes).

    - `commit`: any position may be masked; a masked one that is a condition shows the condition's token in place of the
      mask, to be refined.
    - `latent` (MaskGIT): conditions are never masked and show the clip's own tokens. These know of what is to be
      predicted; at test time there are none, and `fixed` takes their place.
    - `fixed`: conditions are never masked and show the condition's tokens.
    - `prefix`, `none`: nothing of a condition is shown here.

    Args:
        tokens: of the clip.
        given: the condition; none where nothing is given.
        ratio: share of the positions that are masked, rounded down, but at least one (the paper rounds up).
        scores: uniform in training; while decoding, how sure each token is, infinite where it is known.
        mask: number of the mask token.
        conditioning: see above.
        parts: of the loss: `mask`, positions shown as masks; `refine`, masked conditions; `recons`, all others that
            could have been masked.
        most: that may be masked in each clip.
    """
    free = torch.ones_like(tokens, dtype=torch.bool)
    if given is not None and conditioning in ("latent", "fixed"):
        free = (~given.where).expand_as(tokens)
        scores = scores.masked_fill(~free, torch.inf)
        tokens = torch.where(given.where, given.tokens, tokens) if conditioning == "fixed" else tokens
    possible = free.sum(-1)
    count = (possible * ratio).floor().long().clamp_min(1)
    count = torch.minimum(count, possible if most is None else most)
    masked = lowest(scores, count) & free
    if given is not None and conditioning == "commit":
        refined = masked & given.where
        shown = torch.where(masked, torch.where(given.where, given.tokens, mask), tokens)
    else:
        refined = torch.zeros_like(masked)
        shown = tokens.masked_fill(masked, mask)
    asked = {"mask": masked & ~refined, "refine": refined, "recons": free & ~masked}
    return Masked(shown, sum(asked[part].float() for part in parts))


@torch.no_grad()
def decode(
    draw: Callable[[Int[Tensor, "batch tokens"]], tuple[Int[Tensor, "batch tokens"], Float[Tensor, "batch tokens"]]],
    given: Given | None,
    *,
    batch: int,
    tokens: int,
    mask: int,
    steps: int = 12,
    schedule: str = "cosine",
    temperature: float = 4.5,
    conditioning: Conditioning = "commit",
    generator: torch.Generator | None = None,
    device: torch.device | str = "cpu",
) -> Int[Tensor, "batch tokens"]:
    """Algorithm 1: in each step all unknown tokens are drawn at once, and the surest of them are kept.

    Args:
        draw: what the transformer makes of what is shown: a token for each place, and the logarithm of its probability.
        given: the condition; none where nothing is given.
        batch: number of clips.
        tokens: of a clip.
        mask: number of the mask token.
        steps: K; the transformer runs once in each.
        schedule: of the share that is still unknown after each step, see `mask_ratio`.
        temperature: of the noise on how sure a token is, in the first step; it falls to 0 in the last.
        conditioning: see `mask_tokens`; a model trained with `latent` decodes with `fixed`.
        generator: what draws.
        device: of the tokens.

    Returns:
        The tokens drawn in the last step, with those that were kept before.

    Raises:
        ValueError: there is no step.
    """
    if steps < 1:
        raise ValueError(f"steps ({steps}) must be at least 1.")
    conditioning = "fixed" if conditioning == "latent" else conditioning
    options = {"mask": mask, "conditioning": conditioning, "parts": ("mask", "refine")}
    empty = torch.full((batch, tokens), mask, device=device)
    state = mask_tokens(
        empty, given, torch.ones(1, device=device), torch.zeros(batch, tokens, device=device), **options
    )
    for step in range(1, steps + 1):
        unknown = state.asked > 0
        drawn, sure = draw(state.shown)
        drawn = torch.where(unknown, drawn, state.shown)
        if step == steps:
            return drawn
        noise = temperature * (1 - step / steps) * _gumbel(sure, generator)
        scores = torch.where(unknown, sure + noise, torch.inf)
        ratio = mask_ratio(torch.tensor([step / steps], device=device), tokens, schedule)
        options["most"] = (unknown.sum(-1) - 1).clamp_min(0)
        state = mask_tokens(drawn, given, ratio, scores, **options)
    raise AssertionError("the last step returns")


def draw_codes(
    logits: Float[Tensor, "*shape codes"], temperature: float = 1.0, generator: torch.Generator | None = None
) -> tuple[Int[Tensor, "*shape"], Float[Tensor, "*shape"]]:
    """Codes drawn, and the logarithm of the probability that the logits as they are give each of them.

    Args:
        logits: of the codes.
        temperature: that they are divided by before a code is drawn; 0 for the most probable one.
        generator: what draws.
    """
    logits = logits.float()
    if temperature == 0:
        codes = logits.argmax(-1)
    else:
        chances = (logits / temperature).softmax(-1)
        codes = torch.multinomial(chances.flatten(0, -2), 1, generator=generator).view(logits.shape[:-1])
    return codes, logits.softmax(-1).gather(-1, codes[..., None])[..., 0].log()


def _gumbel(like: Tensor, generator: torch.Generator | None) -> Tensor:
    uniform = torch.rand(like.shape, generator=generator, device=like.device)
    return -(-uniform.clamp(1e-20, 1 - 1e-7).log()).log()
