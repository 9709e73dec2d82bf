"""What a language model costs with visual tokens, and with generated weights instead of them: closed forms.

The unit is the MAC. CLIP and the head over the vocabulary are left out; they are the same on both sides.
"""

from dataclasses import dataclass

from lightning_modules.settings import Count, Natural


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """Of a language model of the Llama type; those of Llama-7B by default. `kv_dim` is less with grouped heads."""

    hidden_size: Count = 4096
    mlp_dim: Count = 11008
    layers: Count = 32
    kv_dim: Count = 4096


def language_macs(tokens: Natural, sizes: Sizes) -> int:
    """All blocks, on so many tokens: projections, gated MLP, and attention as if each token saw all."""
    hidden, layers = sizes.hidden_size, sizes.layers
    projections = 2 * hidden**2 + 2 * hidden * sizes.kv_dim + 3 * hidden * sizes.mlp_dim
    return tokens * layers * projections + 2 * tokens**2 * hidden * layers


def addition_macs(tokens: Natural, sizes: Sizes, *, rank: Count = 64, skip: Count = 4, kinds: Count = 5) -> int:
    """The additions x A B^T to `kinds` parts of every `skip`-th layer, all as wide as the model."""
    return tokens * kinds * (sizes.layers // skip) * 2 * sizes.hidden_size * rank


def merging_macs(sizes: Sizes, *, rank: Count = 64, skip: Count = 4, kinds: Count = 5) -> int:
    """The products A B^T themselves, of one picture, likewise."""
    return kinds * (sizes.layers // skip) * sizes.hidden_size**2 * rank


def generator_macs(
    sizes: Sizes,
    *,
    rank: Count = 64,
    skip: Count = 4,
    kinds: Count = 5,
    dim: Count = 512,
    depth: Count = 8,
    visual_dim: Count = 1024,
    patches: Count = 576,
    mlp_ratio: Count = 4,
) -> int:
    """The generator on the features of one picture, with a decoder for each kind, all as wide as the model."""
    queries = sizes.layers // skip
    own = 4 * queries * dim**2 + 2 * queries**2 * dim
    cross = 2 * (queries + patches) * dim**2 + 2 * queries * patches * dim
    block = own + cross + 2 * mlp_ratio * queries * dim**2
    return kinds * (depth * block + queries * dim * sizes.hidden_size * rank) + patches * visual_dim * dim


def projector_macs(sizes: Sizes, *, inner: Count = 4096, visual_dim: Count = 1024, patches: Count = 576) -> int:
    """LLaVA-1.5's projector, two linear layers, on the features of one picture."""
    return patches * inner * (visual_dim + sizes.hidden_size)


def with_bridges(text: Natural, visual: Natural, sizes: Sizes) -> float:
    """The ratio of `without_visual_tokens` with what brings a picture in: generator and additions over the projector.

    A picture has as many features as visual tokens; the vision tower is left out, which both sides have.
    """
    without = language_macs(text, sizes) + addition_macs(text, sizes) + generator_macs(sizes, patches=visual)
    return without / (language_macs(text + visual, sizes) + projector_macs(sizes, patches=visual))


def without_visual_tokens(text: Natural, visual: Natural, sizes: Sizes) -> float:
    """The language model's cost on a text alone over that on the text with visual tokens before it.

    Raises:
        ValueError: there is no token at all.
    """
    if not text + visual:
        raise ValueError("text and visual are both 0, expected a token at least.")
    return language_macs(text, sizes) / language_macs(text + visual, sizes)


def gflops(macs: int) -> float:
    """As papers print it."""
    from lightning_modules.metrics.compute import FLOPS_PER_MAC  # imports torch, which an evaluation does not need

    return FLOPS_PER_MAC * macs / 1e9
