"""A digest for each kind of operation that results come from: `python -m tests.portable` prints them.

`tests/golden/portable.txt` holds them, and `tests/test_portable.py` names the operations that differ on a processor.
"""

import hashlib
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

GOLDEN = Path(__file__).parent / "golden" / "portable.txt"
Digests = dict[str, str]


def uniform(*shape: int) -> Tensor:
    """Numbers in [-0.5, 0.5) that are the same everywhere: integers, scaled by a power of two."""
    raw = np.random.Philox(sum(shape)).random_raw(int(np.prod(shape))).astype(np.uint32)
    return torch.from_numpy(
        (raw >> np.uint32(8)).astype(np.float32).reshape(shape) * np.float32(2**-24) - np.float32(0.5)
    )


def digest(*values: Tensor | np.ndarray) -> str:
    """Ten hex digits of the bytes of all values."""
    found = hashlib.sha256()
    for value in values:
        found.update(np.ascontiguousarray(value.detach().numpy() if isinstance(value, Tensor) else value).tobytes())
    return found.hexdigest()[:10]


def gradients(module: nn.Module, x: Tensor) -> str:
    """Digest of outputs, and of the gradients of inputs and parameters."""
    x = x.clone().requires_grad_()
    out = module(x)
    (out * uniform(*out.shape)).sum().backward()
    return digest(out, x.grad, *(p.grad for p in module.parameters()))


def seeded(build) -> nn.Module:
    """A module whose parameters are the same everywhere."""
    module = build()
    with torch.no_grad():
        for p in module.parameters():
            p.copy_(uniform(*p.shape) * 0.25)
    return module


def random_numbers() -> Digests:
    """What the generator of torch gives."""
    draws = {
        "randn": lambda: torch.randn(1000),
        "randn_few": lambda: torch.randn(7),
        "rand": lambda: torch.rand(1000),
        "randperm": lambda: torch.randperm(1000),
        "bernoulli": lambda: torch.bernoulli(torch.full((1000,), 0.3)),
        "dropout": lambda: F.dropout(torch.ones(1000), 0.1),
        "multinomial": lambda: torch.multinomial(uniform(8, 50) + 0.5, 5),
        "exponential": lambda: torch.empty(1000).exponential_(),
        "trunc_normal": lambda: nn.init.trunc_normal_(torch.empty(1000), std=0.02),
        "kaiming": lambda: nn.init.kaiming_normal_(torch.empty(50, 30)),
    }
    found = {}
    for name, draw in draws.items():
        torch.manual_seed(0)
        found[name] = digest(draw())
    return found


def elementwise_and_sums() -> Digests:
    """Functions of each element, and sums along axes."""
    x = uniform(64, 17, 65)
    functions = "exp expm1 sin cos tanh sigmoid erf erfinv square abs atan".split()
    found = {name: digest(getattr(torch, name)(x)) for name in functions}
    positive = "log log2 log1p sqrt rsqrt reciprocal lgamma".split()
    found |= {name: digest(getattr(torch, name)(x + 0.75)) for name in positive}
    found |= {name: digest(getattr(F, name)(x)) for name in "gelu silu softplus mish leaky_relu logsigmoid".split()}
    found |= {
        "gelu_tanh": digest(F.gelu(x, approximate="tanh")),
        "pow": digest((x + 0.75) ** 1.7),
        "exp_double": digest(x.double().exp()),
        "sum": digest(x.sum(), x.sum(0), x.sum(1), x.sum(-1)),
        "mean": digest(x.mean(), x.mean(0), x.mean(-1), x.transpose(0, 2).mean(1)),
        "var": digest(x.var(), x.var(0), x.var(-1), x.std(1)),
        "norm": digest(x.norm(), x.norm(dim=-1), F.normalize(x, dim=-1)),
        "sum_double": digest(x.double().sum(), x.double().sum(0)),
        "cumsum": digest(x.cumsum(0), x.cumsum(-1)),
        "logsumexp": digest(x.logsumexp(-1), x.logsumexp(0)),
        "softmax": digest(x.softmax(-1), x.softmax(1), x.log_softmax(-1)),
        "sort": digest(x.argsort(-1), x.topk(5, -1).values, x.topk(5, -1).indices),
    }
    return found


def products() -> Digests:
    """Matrix products in the forms that layers and their gradients take."""
    found = {}
    shapes = [(1088, 64, 256), (1088, 128, 10), (128, 1088, 64), (1088, 10, 128), (7, 5, 3), (33, 100, 17)]
    shapes += [(1, 64, 10), (256, 256, 256), (64, 768, 64), (50, 192, 1)]
    for m, k, n in shapes:
        a, b, at, bt = uniform(m, k), uniform(k, n), uniform(k, m).t(), uniform(n, k).t()
        found[f"product_{m}x{k}x{n}"] = digest(a @ b, a @ bt, at @ b, at @ bt, a @ b[:, 0])
        found[f"product_double_{m}x{k}x{n}"] = digest(a.double() @ b.double(), at.double() @ b.double())
    x, square = uniform(64, 17, 64), uniform(24, 24)
    found |= {
        "bmm": digest(x @ x.transpose(1, 2), x.transpose(1, 2) @ x),
        "einsum": digest(torch.einsum("bij,bkj->bik", x, x), torch.einsum("bij,jk->bik", x, uniform(64, 8))),
        "cdist": digest(torch.cdist(x[0], x[1])),
        "solve": digest(torch.linalg.solve(square, uniform(24, 3))),
        "qr": digest(*torch.linalg.qr(square)),
        "svd": digest(torch.linalg.svdvals(square)),
        "eigh": digest(torch.linalg.eigvalsh(square @ square.t())),
    }
    return found


def layers() -> Digests:
    """Layers with their gradients."""
    tokens, images = uniform(64, 17, 64), uniform(32, 16, 16, 16)
    built = {
        "linear": (lambda: nn.Linear(64, 256), tokens),
        "layer_norm": (lambda: nn.LayerNorm(64), tokens),
        "attention": (lambda: Attention(), tokens),
        "encoder_layer": (lambda: nn.TransformerEncoderLayer(64, 4, 256, 0.0, "gelu", batch_first=True), tokens),
        "conv": (lambda: nn.Conv2d(16, 32, 3, padding=1), images),
        "conv_stride": (lambda: nn.Conv2d(16, 32, 4, stride=4), images),
        "conv_groups": (lambda: nn.Conv2d(16, 16, 3, padding=1, groups=16), images),
        "conv_one": (lambda: nn.Conv2d(1, 8, 5, padding=2), uniform(64, 1, 28, 28)),
        "conv_transpose": (lambda: nn.ConvTranspose2d(16, 8, 4, stride=2, padding=1), images),
        "conv3d": (lambda: nn.Conv3d(3, 8, 3, padding=1), uniform(4, 3, 4, 12, 12)),
        "conv1d": (lambda: nn.Conv1d(17, 8, 3), tokens),
        "batch_norm": (lambda: nn.BatchNorm2d(16), images),
        "group_norm": (lambda: nn.GroupNorm(4, 16), images),
        "max_pool": (lambda: nn.MaxPool2d(2), images),
        "avg_pool": (lambda: nn.AdaptiveAvgPool2d(5), images),
        "bilinear": (lambda: nn.Upsample(scale_factor=1.7, mode="bilinear"), images),
        "bicubic": (lambda: nn.Upsample(scale_factor=0.6, mode="bicubic"), images),
        "grid_sample": (lambda: Warp(), images),
    }
    found = {name: gradients(seeded(build), x) for name, (build, x) in built.items()}
    words = seeded(lambda: nn.Embedding(50, 64))
    out = words(torch.arange(64 * 17).reshape(64, 17) * 7 % 50)
    (out * tokens).sum().backward()
    found["embedding"] = digest(out, words.weight.grad)
    small = F.interpolate(images, size=9, mode="bilinear", antialias=True)
    return found | {"antialias": digest(small, F.interpolate(images, size=9, mode="bicubic", antialias=True))}


class Attention(nn.Module):
    """Attention with no parameters."""

    def forward(self, x: Tensor) -> Tensor:
        heads = x.reshape(64, 17, 4, 16).transpose(1, 2)
        causal = F.scaled_dot_product_attention(heads, heads, heads, is_causal=True)
        return F.scaled_dot_product_attention(heads, heads, heads) + causal


class Warp(nn.Module):
    """Samples a rotated grid, as crops of images do (`tasks/augmentation.py`)."""

    def forward(self, x: Tensor) -> Tensor:
        matrix = torch.tensor([[0.9, -0.2, 0.1], [0.2, 0.9, 0.0]]).expand(len(x), 2, 3)
        grid = F.affine_grid(matrix, list(x.shape), align_corners=False)
        return F.grid_sample(x, grid, mode="bicubic", padding_mode="reflection", align_corners=False)


def losses_and_optimisers() -> Digests:
    """Losses with gradients, and weights after some steps."""
    x, target = uniform(1088, 64), torch.arange(1088) % 64
    losses = {
        "cross_entropy": lambda x: F.cross_entropy(x, target),
        "smoothed": lambda x: F.cross_entropy(x, target, label_smoothing=0.1),
        "mse": lambda x: F.mse_loss(x, uniform(64, 1088).t()),
        "smooth_l1": lambda x: F.smooth_l1_loss(x, uniform(64, 1088).t()),
        "bce": lambda x: F.binary_cross_entropy_with_logits(x, (target % 2).float()[:, None].expand(-1, 64)),
        "kl": lambda x: F.kl_div(x.log_softmax(-1), uniform(64, 1088).t().softmax(-1), reduction="batchmean"),
        "cosine": lambda x: F.cosine_similarity(x, uniform(64, 1088).t()).mean(),
    }
    found = {}
    for name, loss in losses.items():
        leaf = x.clone().requires_grad_()
        value = loss(leaf)
        value.backward()
        found[name] = digest(value, leaf.grad)
    optimisers = {
        "adamw": lambda p: torch.optim.AdamW(p, lr=0.01),
        "adamw_fused": lambda p: torch.optim.AdamW(p, lr=0.01, fused=True),
        "adam": lambda p: torch.optim.Adam(p, lr=0.01),
        "sgd": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=1e-4),
        "sgd_fused": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, fused=True),
    }
    for name, optimiser in optimisers.items():
        model = seeded(lambda: nn.Sequential(nn.Linear(64, 128), nn.GELU(), nn.LayerNorm(128), nn.Linear(128, 10)))
        steps = optimiser(model.parameters())
        for _ in range(10):
            steps.zero_grad()
            F.cross_entropy(model(x), target % 10).backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            steps.step()
        found[f"train_{name}"] = digest(*model.parameters())
    return found


def numpy_and_scipy() -> Digests:
    """The same kinds of work in numpy, scipy and scikit-learn."""
    from scipy.optimize import linear_sum_assignment, minimize_scalar
    from scipy.special import stdtrit

    found = {}
    for dtype in (np.float32, np.float64):
        name, x = np.dtype(dtype).name, uniform(40, 33, 17).numpy().astype(dtype)
        square, table = x[:17, 0], x.reshape(40, -1)
        functions = {each: getattr(np, each)(x) for each in "exp sin cos tanh square sum cumsum mean std".split()}
        functions |= {each: getattr(np, each)(x + dtype(0.75)) for each in "log log1p sqrt log2".split()}
        functions |= {
            "power": (x + dtype(0.75)) ** dtype(1.7),
            "sums": np.concatenate([x.sum(0).ravel(), x.sum(1).ravel(), x.sum(2).ravel(), x.mean(0).ravel()]),
            "sort": np.argsort(x, -1),
            "matmul": table @ table.T,
            "matvec": table @ table[0],
            "einsum": np.einsum("ijk,ijl->ikl", x, x),
            "solve": np.linalg.solve(square, square[:, :3] + dtype(1)),
            "svd": np.linalg.svd(square)[1],
            "eigh": np.linalg.eigvalsh(square @ square.T),
            "norm": np.linalg.norm(x, axis=-1),
        }
        found |= {f"numpy_{each}_{name}": digest(np.asarray(value)) for each, value in functions.items()}
    cost = uniform(30, 40).double().numpy()
    found["scipy_assignment"] = digest(np.asarray(linear_sum_assignment(cost)))
    found["scipy_quantile"] = digest(stdtrit(np.arange(1, 40), 0.975))
    found["scipy_minimum"] = digest(np.asarray(minimize_scalar(lambda t: float(((cost - t) ** 2).sum())).x))
    generator = np.random.default_rng(0)
    draws = (generator.normal(size=99), generator.random(99), generator.permutation(99), generator.gamma(2, size=99))
    return found | {"numpy_random": digest(*draws)}


def digests() -> Digests:
    """All digests by the name of the operation, computed with one thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        found = {}
        for part in (random_numbers, elementwise_and_sums, products, layers, losses_and_optimisers, numpy_and_scipy):
            found |= part()
        return found
    finally:
        torch.set_num_threads(threads)


if __name__ == "__main__":
    for operation, value in digests().items():
        print(operation, value)
