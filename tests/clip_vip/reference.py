"""CLIP-ViP's attention as a rule for each pair of tokens, run through the layers of transformers with a dense mask."""

import torch
import torch.nn.functional as F


def allowed(proxies: int, frames: int, patches: int) -> torch.Tensor:
    """Which token (row) may see which (column): proxies all, everyone the proxies, a patch its own frame."""
    frame = [-1] * proxies + [t for t in range(frames) for _ in range(patches)]
    return torch.tensor([[mine == -1 or theirs == -1 or mine == theirs for theirs in frame] for mine in frame])


def dense_features(network, video: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Unit features of a `VideoClip` with any attention, by `mask` (tokens tokens)."""
    vision = network.clip.vision_model
    x = vision.pre_layrnorm(network.embed(video))
    bias = torch.zeros(mask.shape).masked_fill(~mask, torch.finfo(x.dtype).min)[None, None]
    x = vision.encoder(inputs_embeds=x, attention_mask=bias).last_hidden_state
    return F.normalize(network.clip.visual_projection(vision.post_layernorm(x[:, 0])), dim=-1)


def joint_loss(video, subtitle, caption, scale) -> torch.Tensor:
    """The combined loss L_{V<->S,C}, pair by pair."""
    rows = len(video)
    total = torch.zeros(())
    for i in range(rows):
        negatives = [scale * video[i] @ text[j] for text in (subtitle, caption) for j in range(rows) if j != i]
        for text in (subtitle, caption):
            positive = scale * video[i] @ text[i]
            total = total + torch.logsumexp(torch.stack([positive, *negatives]), 0) - positive
            others = torch.stack([scale * video[j] @ text[i] for j in range(rows)])
            total = total + torch.logsumexp(others, 0) - positive
    return total / rows
