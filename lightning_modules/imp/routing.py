"""Which expert sees which token: experts choose, tokens choose, or every slot mixes all tokens.

Read `choose_tokens` first. Tokens are dealt out in groups, and what a router decides stays within a group. Its logits
are float32 in any precision.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor


class Dispatch(NamedTuple):
    """What experts get of each group, and with which weight their answers come back.

    index: which token lies in each place of each expert.
    weight: of the answer; 0 for a place that holds no token.
    """

    index: Int[Tensor, "groups experts capacity"]
    weight: Float[Tensor, "groups experts capacity"]


def number_of_groups(tokens: int, *, largest: int, experts: int, replicas: int = 1) -> int:
    """Groups that tokens are dealt out into, by the rule of the official code.

    The smallest multiple of experts x replicas that divides the tokens and leaves no more than `largest` in a group;
    a division with a rest is rounded down first, as there.

    Args:
        tokens: of all samples of a batch.
        largest: tokens of a group.
        experts: of a layer.
        replicas: copies of each expert, on several devices.

    Raises:
        ValueError: no number of groups fits.
    """
    unit = experts * replicas
    fewest = max(tokens // largest, unit)
    found = next((n for n in range(fewest, tokens + 1) if tokens % n == 0 and n % unit == 0), None)
    if found is None:
        raise ValueError(
            f"{tokens} tokens cannot be dealt out to {experts} experts with {replicas} replicas in equal groups: take "
            f"a batch whose tokens are a multiple of {unit}, or, to evaluate, mixture.evaluation_groups: sample."
        )
    return found


def capacity(group: int, *, experts: int, factor: float, least: int = 0) -> int:
    """Tokens of a group that an expert takes."""
    return max(least, round(factor * group / experts))


def choose_tokens(probability: Float[Tensor, "groups tokens experts"], places: int) -> Dispatch:
    """Each expert takes the tokens that the router gives it with the highest probability (2202.09368).

    A token may be taken by several experts, or by none. The weight of an answer is the probability.

    Args:
        probability: of each expert, for each token; they sum to 1 over the experts.
        places: tokens that an expert takes.

    Raises:
        ValueError: there are more places than tokens.
    """
    if places > probability.shape[1]:
        raise ValueError(f"an expert has {places} places, but its group has {probability.shape[1]} tokens: take fewer.")
    weight, index = probability.transpose(1, 2).topk(places, dim=2)
    return Dispatch(index, weight)


def choose_experts(
    probability: Float[Tensor, "groups tokens experts"], places: int, *, selected: int = 1, prioritised: bool = False
) -> Dispatch:
    """Each token goes to its best experts, as long as these have places (Switch 2101.03961, V-MoE 2106.05974).

    All first choices come before all second ones. Within a choice, tokens come in their order or, where prioritised,
    those with the highest probability first.

    Args:
        probability: see `choose_tokens`.
        places: tokens that an expert takes.
        selected: experts that a token goes to.
        prioritised: batch prioritised routing of V-MoE.
    """
    groups, tokens, experts = probability.shape
    weight, chosen = probability.topk(selected, dim=2)
    order = torch.arange(tokens, device=probability.device).expand(groups, tokens)
    if prioritised:
        order = weight[..., 0].argsort(dim=1, descending=True, stable=True)
    asked = chosen.gather(1, order[..., None].expand_as(chosen)).transpose(1, 2).flatten(1)  # first choices first
    sent = weight.gather(1, order[..., None].expand_as(weight)).transpose(1, 2).flatten(1)
    turn = F.one_hot(asked, experts).cumsum(1).gather(2, asked[..., None])[..., 0] - 1
    kept: Bool[Tensor, "groups asked"] = turn < places
    place = torch.where(kept, asked * places + turn, experts * places)  # the last one is thrown away
    index = place.new_zeros(groups, experts * places + 1).scatter(1, place, order.repeat(1, selected))
    weights = sent.new_zeros(groups, experts * places + 1).scatter(1, place, sent * kept)
    return Dispatch(*(x[:, :-1].unflatten(1, (experts, places)) for x in (index, weights)))


def balancing_loss(probability: Float[Tensor, "groups tokens experts"], selected: int = 1) -> Float[Tensor, ""]:
    """Switch's loss, 1 where tokens and probabilities are spread evenly (2101.03961, equations 4 to 6).

    Args:
        probability: see `choose_tokens`.
        selected: experts that a token asks for.
    """
    experts = probability.shape[2]
    asked = F.one_hot(probability.topk(selected, dim=2).indices, experts).amax(2)
    return experts**2 * (asked.to(probability.dtype).mean(1) * probability.mean(1)).mean()


def z_loss(logits: Float[Tensor, "groups tokens experts"]) -> Float[Tensor, ""]:
    """Mean square of the logarithm of the partition function (2202.08906); keeps logits small."""
    return logits.logsumexp(2).square().mean()


def dispatched(
    x: Float[Tensor, "groups tokens dim"], dispatch: Dispatch
) -> Float[Tensor, "groups experts capacity dim"]:
    """What each expert gets."""
    return x.flatten(0, 1).index_select(0, _rows(dispatch, x.shape[1])).unflatten(0, dispatch.index.shape)


def combined(
    answers: Float[Tensor, "groups experts capacity dim"], dispatch: Dispatch, tokens: int
) -> Float[Tensor, "groups tokens dim"]:
    """The weighted sum of answers for each token; zeros for one that no expert has taken."""
    weighted = (answers * dispatch.weight[..., None].to(answers.dtype)).flatten(0, 2)
    found = weighted.new_zeros(len(answers) * tokens, answers.shape[-1])
    return found.index_add(0, _rows(dispatch, tokens), weighted).unflatten(0, (-1, tokens))


def _rows(dispatch: Dispatch, tokens: int) -> Int[Tensor, " places"]:
    """The place of each token among those of all groups."""
    groups = torch.arange(len(dispatch.index), device=dispatch.index.device)
    return (dispatch.index + tokens * groups[:, None, None]).flatten()
