"""Feed-forward networks, one for all tokens or several for some of them each. Read `Experts.forward` first.

Linear maps have no biases, and the activation is GELU by its tanh form, as in the official code.
"""

from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn
from typing_extensions import TypedDict  # pydantic reads the one of `typing` from Python 3.12 on

from lightning_modules.imp.routing import (
    Dispatch,
    balancing_loss,
    capacity,
    choose_experts,
    choose_tokens,
    combined,
    dispatched,
    number_of_groups,
    z_loss,
)
from lightning_modules.settings import STRICT, Count, Natural, NonNegative, Positive

ROUTER_STD = 0.02
SMALL = 1e-6  # under the root of a norm in the soft router
Routing = Literal["expert_choice", "token_choice", "soft"]


class Mixture(TypedDict):
    """Of the layers with experts.

    `experts`: of a layer. `layers`: how many layers have them, 0 for none; the last ones, or with `place` uniform those
    at equal distances. `routing`: see `routing`. `largest_group`: tokens that are routed together at most. `capacity`:
    places of all experts together, as a share of the tokens; `least_capacity`: places of an expert at least. `selected`
    and `prioritised`: of token choice. `slots`: of an expert of the soft router. `evaluation_groups`: `batch` deals
    tokens out as in training, as the official code does, so that answers depend on the batch; with `sample`, each
    sample is a group of its own. `z_loss`, `balance`: weights of the two losses; the balance is that of token choice.
    """

    __pydantic_config__ = STRICT
    experts: Annotated[Count, Field(ge=2)]
    layers: Natural
    place: Literal["last", "uniform"]
    routing: Routing
    largest_group: Count
    capacity: Positive
    least_capacity: Natural
    selected: Count
    prioritised: bool
    slots: Count
    evaluation_groups: Literal["batch", "sample"]
    z_loss: NonNegative
    balance: NonNegative


class FeedForward(nn.Module):
    """Linear, GELU, linear."""

    def __init__(self, dim: int, hidden: int):
        super().__init__()
        self.wi = nn.Linear(dim, hidden, bias=False)
        self.wo = nn.Linear(hidden, dim, bias=False)

    def forward(self, x: Float[Tensor, "*batch dim"]) -> Float[Tensor, "*batch dim"]:
        """The two layers."""
        return self.wo(F.gelu(self.wi(x), approximate="tanh"))


class Experts(nn.Module):
    """Several feed-forward networks, and a router that says which token goes where.

    What the last call has decided stays in `loss`, `probability` and `dispatch`, for the objective and for figures.

    Args:
        dim: of a token.
        hidden: of each expert.
        mixture: see `Mixture`.

    Raises:
        ValueError: a token is to go to more experts than there are.
    """

    def __init__(self, dim: int, hidden: int, mixture: Mixture):
        super().__init__()
        if mixture["selected"] > mixture["experts"]:
            raise ValueError(
                f"mixture.selected is {mixture['selected']}, but there are {mixture['experts']} experts: take fewer."
            )
        self.mixture, self.dim = mixture, dim
        experts = mixture["experts"]
        if mixture["routing"] == "soft":
            self.router = nn.Parameter(torch.empty(dim, experts * mixture["slots"]))
            self.scale = nn.Parameter(torch.ones(()))
        else:
            self.router = nn.Parameter(torch.empty(dim, experts))
        self.wi = nn.Parameter(torch.empty(experts, dim, hidden))
        self.wo = nn.Parameter(torch.empty(experts, hidden, dim))
        self.loss: Tensor | None = None
        self.probability: Tensor | None = None
        self.dispatch: Dispatch | None = None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """The router from a normal distribution, each expert as a linear map."""
        nn.init.normal_(self.router, std=ROUTER_STD)
        for weight in (self.wi, self.wo):
            for expert in weight.detach():
                lecun_normal(expert, fan_in=expert.shape[0])

    def forward(self, x: Float[Tensor, "batch tokens dim"]) -> Float[Tensor, "batch tokens dim"]:
        """What the experts answer, weighted; tokens that no expert took get zeros."""
        if self.mixture["routing"] == "soft":
            return self._soft(x)
        grouped = x.reshape(self.groups(x), -1, self.dim)
        logits = self.logits(grouped)
        probability = logits.softmax(2)
        self.dispatch = self.choose(probability)
        self.probability = probability.detach().reshape(*x.shape[:2], -1)
        self.loss = self.mixture["z_loss"] * z_loss(logits)
        if self.mixture["routing"] == "token_choice":
            self.loss = self.loss + self.mixture["balance"] * balancing_loss(probability, self.mixture["selected"])
        answers = self.answer(dispatched(grouped, self.dispatch))
        return combined(answers, self.dispatch, grouped.shape[1]).reshape(x.shape)

    def groups(self, x: Float[Tensor, "batch tokens dim"]) -> int:
        """Into how many groups the tokens of a batch are dealt out."""
        if not self.training and self.mixture["evaluation_groups"] == "sample":
            return len(x)
        largest, experts = self.mixture["largest_group"], self.mixture["experts"]
        return number_of_groups(x.shape[0] * x.shape[1], largest=largest, experts=experts)

    def logits(self, grouped: Float[Tensor, "groups tokens dim"]) -> Float[Tensor, "groups tokens experts"]:
        """The router's, in float32."""
        with torch.autocast(grouped.device.type, enabled=False):
            return grouped.float() @ self.router.float()

    def choose(self, probability: Float[Tensor, "groups tokens experts"]) -> Dispatch:
        """Who sees which token."""
        mixture, tokens = self.mixture, probability.shape[1]
        alone = not self.training and mixture["evaluation_groups"] == "sample"
        least = max(int(alone), mixture["least_capacity"])  # a sample of few tokens is not to be left without experts
        places = capacity(tokens, experts=mixture["experts"], factor=mixture["capacity"], least=least)
        if mixture["routing"] == "expert_choice":
            return choose_tokens(probability, min(places, tokens))
        return choose_experts(probability, places, selected=mixture["selected"], prioritised=mixture["prioritised"])

    def answer(
        self, taken: Float[Tensor, "groups experts capacity dim"]
    ) -> Float[Tensor, "groups experts capacity dim"]:
        """Each expert's network on what it took, as one batched product for all experts."""
        groups, _, places, _ = taken.shape
        flat = taken.transpose(0, 1).flatten(1, 2)
        answers = torch.bmm(F.gelu(torch.bmm(flat, self.wi), approximate="tanh"), self.wo)
        return answers.unflatten(1, (groups, places)).transpose(0, 1)

    def _soft(self, x: Float[Tensor, "batch tokens dim"]) -> Float[Tensor, "batch tokens dim"]:
        """Soft MoE (2308.00951): slots are mixtures of a sample's tokens, tokens mixtures of all answers."""
        with torch.autocast(x.device.type, enabled=False):
            unit, mu = (_unit(part.float(), axis) for part, axis in ((x, -1), (self.router, 0)))
            logits = unit @ (mu * self.scale)
        experts, slots = self.mixture["experts"], self.mixture["slots"]
        taken = logits.softmax(1).transpose(1, 2).to(x.dtype) @ x
        answers = self.answer(taken.unflatten(1, (experts, slots)))
        weight = logits.softmax(2)
        self.loss, self.probability = logits.new_zeros(()), weight.detach().unflatten(2, (experts, slots)).sum(3)
        return weight.to(x.dtype) @ answers.flatten(1, 2)


def _unit(x: Tensor, axis: int) -> Tensor:
    return x * torch.rsqrt(x.square().sum(axis, keepdim=True) + SMALL)


def lecun_normal(weight: Tensor, fan_in: int) -> None:
    """Draw a truncated normal distribution of variance 1 / fan_in, as flax does for dense layers."""
    with torch.no_grad():
        std = fan_in**-0.5 / 0.87962566103423978  # of a normal distribution that is cut off at 2 deviations
        nn.init.trunc_normal_(weight, std=std, a=-2 * std, b=2 * std)
