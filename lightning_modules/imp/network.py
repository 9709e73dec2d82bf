"""The whole network: what a modality has of its own, the encoder that all share, and heads.

Read `Network.features` first. A modality has an embedding, a linear map before the encoder and one behind it. Heads
read the mean of the tokens: an MLP for each ordered pair of modalities, a linear classifier for each data set; the
classifier of words reads every token.
"""

from collections.abc import Mapping
from itertools import permutations
from typing import Annotated, Literal, NotRequired

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from pydantic import Field
from torch import Tensor, nn
from typing_extensions import TypedDict  # pydantic reads the one of `typing` from Python 3.12 on

from lightning_modules.imp.embeddings import Embedding, draw_embeddings
from lightning_modules.imp.encoder import EPS, Encoder
from lightning_modules.imp.experts import Mixture, lecun_normal
from lightning_modules.imp.tokens import Tokens
from lightning_modules.settings import STRICT, Count, NonNegative, Positive, Share

Modality = Literal["vision", "waveform", "spectrogram", "text"]
COLOURS = 3
SMALL = 1e-6  # beside a number of tokens, as in the official code


class EncoderSizes(TypedDict):
    """See `Encoder`."""

    __pydantic_config__ = STRICT
    dim: Count
    hidden: Count
    layers: Count
    heads: Count
    norm_qk: bool


class Vision(TypedDict):
    """`patch`: frames, height, width of a tubelet. `buckets`: positions along each axis."""

    __pydantic_config__ = STRICT
    patch: Annotated[list[Count], Field(min_length=3, max_length=3)]
    buckets: Annotated[list[Count], Field(min_length=3, max_length=3)]


class Spectrogram(TypedDict):
    """What is taken out of a wave, see `tokens.log_mel`.

    `patch`: times, bands of a token; `buckets`: positions along both; `mean` and `deviation` are taken out of the
    logarithms, 0 and 1 in the official code.
    """

    __pydantic_config__ = STRICT
    patch: Annotated[list[Count], Field(min_length=2, max_length=2)]
    buckets: Annotated[list[Count], Field(min_length=2, max_length=2)]
    rate: Count
    frame: Count
    step: Count
    bands: Count
    lowest: NonNegative
    highest: Positive
    mean: float
    deviation: Positive


class Waveform(TypedDict):
    """`patch`: samples of a token; `buckets`: positions."""

    __pydantic_config__ = STRICT
    patch: Count
    buckets: Count


class Text(TypedDict):
    """`words`: number of ids; `buckets`: positions."""

    __pydantic_config__ = STRICT
    words: Count
    buckets: Count


class Modalities(TypedDict):
    """How each modality becomes tokens; one that no task has can be left out."""

    __pydantic_config__ = STRICT
    vision: NotRequired[Vision]
    spectrogram: NotRequired[Spectrogram]
    waveform: NotRequired[Waveform]
    text: NotRequired[Text]


class Task(TypedDict):
    """What is learnt from one data set.

    `objective`: contrast of all pairs of the modalities, classification of the only one, or masked words of texts.
    `classes`: of a classification, else null. `drop`: share of the tokens that training drops, of all modalities but
    texts. `weight`: of the loss.
    """

    __pydantic_config__ = STRICT
    objective: Literal["contrast", "classification", "masked_words"]
    modalities: Annotated[list[Modality], Field(min_length=1)]
    classes: Count | None
    drop: Annotated[Share, Field(lt=1)]
    weight: Positive


Tasks = dict[str, Task]


class CommonSpace(nn.Module):
    """Linear, GELU, linear, norm: from the features of one modality to what is compared with another."""

    def __init__(self, dim: int, common: int):
        super().__init__()
        self.wi = nn.Linear(dim, common)
        self.wo = nn.Linear(common, common)
        self.layer_norm = nn.LayerNorm(common, eps=EPS)

    def forward(self, x: Float[Tensor, "*batch dim"]) -> Float[Tensor, "*batch common"]:
        """Vectors in the common space, of any length."""
        return self.layer_norm(self.wo(F.gelu(self.wi(x), approximate="tanh")))


class Network(nn.Module):
    """See the head of this file.

    Args:
        sizes: of the encoder.
        mixture: of its layers with experts; null for none.
        modalities: see `Modalities`.
        tasks: decide which heads there are.
        common_dim: of the common spaces.
        temperature: at the start, of each pair of modalities that are contrasted.

    Raises:
        ValueError: a task does not fit its objective, or names a modality without settings.
    """

    def __init__(
        self,
        *,
        sizes: EncoderSizes,
        mixture: Mixture | None,
        modalities: Modalities,
        tasks: Tasks,
        common_dim: int,
        temperature: float,
    ):
        super().__init__()
        check_tasks(tasks, modalities)
        dim, used = sizes["dim"], sorted({name for task in tasks.values() for name in task["modalities"]})
        self.embed = nn.ModuleDict({name: embedding(name, modalities[name], dim) for name in used})
        self.pre_projection = nn.ModuleDict({name: nn.Linear(dim, dim) for name in used})
        self.encoder = Encoder(**sizes, mixture=mixture)
        self.post_projection = nn.ModuleDict({name: nn.Linear(dim, dim) for name in used})
        pairs = contrasted(tasks)
        self.common = nn.ModuleDict({f"{a}_to_{b}": CommonSpace(dim, common_dim) for a, b in pairs})
        self.temperatures = nn.ParameterDict(
            {name: nn.Parameter(torch.tensor(float(temperature))) for name in sorted({pair_name(*p) for p in pairs})}
        )
        self.classified = {name: task["modalities"][0] for name, task in tasks.items() if task["classes"]}
        self.classifiers = nn.ModuleDict({name: nn.Linear(dim, tasks[name]["classes"]) for name in self.classified})
        words = any(task["objective"] == "masked_words" for task in tasks.values())
        self.word_classifier = nn.Linear(dim, modalities["text"]["words"]) if words else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """As flax draws them: truncated normal distributions of variance 1 / inputs, and zeros for biases."""
        for part in self.modules():
            if isinstance(part, nn.Linear):
                lecun_normal(part.weight, part.in_features)
                if part.bias is not None:
                    nn.init.zeros_(part.bias)
        draw_embeddings(self)

    def features(self, modality: str, tokens: Tokens) -> Float[Tensor, "batch tokens dim"]:
        """Features of every token of one modality."""
        x = self.pre_projection[modality](self.embed[modality](tokens))
        return self.post_projection[modality](self.encoder(x, tokens.there))

    def pooled(self, modality: str, tokens: Tokens) -> Float[Tensor, "batch dim"]:
        """The mean of the features of the tokens that are there."""
        return masked_mean(self.features(modality, tokens), tokens.there)

    def common_vectors(
        self, source: str, target: str, pooled: Float[Tensor, "*batch dim"]
    ) -> Float[Tensor, "*batch common"]:
        """Vectors of `source` that are compared with those of `target`; their length says nothing."""
        return self.common[f"{source}_to_{target}"](pooled)

    def temperature(self, first: str, second: str) -> Float[Tensor, ""]:
        """Of a pair of modalities, never below 0: a plain parameter, as in the official code."""
        return self.temperatures[pair_name(first, second)].relu()

    def kernels(self) -> set[str]:
        """Names of the parameters that the official code decays: matrices, and neither tables nor the soft router."""
        found = {f"{name}.weight" for name, part in self.named_modules() if isinstance(part, nn.Linear)}
        for number, layer in enumerate(self.encoder.layers):
            start = f"encoder.layers.{number}.feed_forward"
            if layer.feed_forward in self.encoder.experts():
                found |= {f"{start}.wi", f"{start}.wo"}
                found |= set() if hasattr(layer.feed_forward, "scale") else {f"{start}.router"}
        return found


def masked_mean(
    features: Float[Tensor, "batch tokens dim"], there: Bool[Tensor, "batch tokens"] | None
) -> Float[Tensor, "batch dim"]:
    """The mean of the tokens that are there."""
    if there is None:
        return features.mean(1)
    mask = there[..., None].to(features.dtype)
    return (features * mask).sum(1) / (mask.sum(1) + SMALL)


def embedding(name: str, settings: Mapping[str, object], dim: int) -> Embedding:
    """That of a modality.

    Args:
        name: of the modality.
        settings: its own, of `Modalities`.
        dim: of a vector.
    """
    buckets = settings["buckets"] if isinstance(settings["buckets"], list) else [settings["buckets"]]
    if name == "text":
        return Embedding(settings["words"], words=True, buckets=buckets, dim=dim)
    patch = settings["patch"] if isinstance(settings["patch"], list) else [settings["patch"]]
    size = int(torch.tensor(patch, device="cpu").prod()) * (COLOURS if name == "vision" else 1)
    return Embedding(size, words=False, buckets=buckets, dim=dim)


def contrasted(tasks: Tasks) -> list[tuple[str, str]]:
    """Ordered pairs of modalities that some task contrasts."""
    pairs = {
        pair
        for task in tasks.values()
        if task["objective"] == "contrast"
        for pair in permutations(task["modalities"], 2)
    }
    return sorted(pairs)


def pair_name(first: str, second: str) -> str:
    """Of two modalities in either order."""
    return "_".join(sorted((first, second)))


def check_tasks(tasks: Tasks, modalities: Modalities) -> None:
    """Refuse tasks that cannot be.

    Raises:
        ValueError: see `Network`.
    """
    if not tasks:
        raise ValueError("model.tasks is empty: name at least one task.")
    for name, task in tasks.items():
        if missing := [each for each in task["modalities"] if each not in modalities]:
            raise ValueError(
                f"model.tasks.{name}.modalities has {missing[0]!r}, but model.modalities has "
                f"{', '.join(modalities) or 'none'}: add its settings there."
            )
        if len(set(task["modalities"])) < len(task["modalities"]):
            raise ValueError(f"model.tasks.{name}.modalities is {task['modalities']}: name each modality once.")
        expected = EXPECTED[task["objective"]]
        if not expected["fits"](task["modalities"]) or (task["classes"] is None) == expected["classes"]:
            raise ValueError(
                f"model.tasks.{name} has modalities {task['modalities']} and classes {task['classes']}: "
                f"{task['objective']} takes {expected['words']}."
            )


EXPECTED = {
    "contrast": {
        "fits": lambda given: len(given) >= 2,
        "classes": False,
        "words": "two modalities or more, no classes",
    },
    "classification": {"fits": lambda given: len(given) == 1, "classes": True, "words": "one modality, and classes"},
    "masked_words": {"fits": lambda given: given == ["text"], "classes": False, "words": "text alone, and no classes"},
}
