"""CamViG: what a camera path costs, the cache, how paths become tokens, and how a camera is measured.

- A clip along a path with keys and values that are kept, against reading all that was written again for each token; the
  same with guidance, with the first frame written once more, and without the path's places.
- Paths as bins and as residual vectors: time, and how far a path is from the one that its tokens stand for.
- The camera of a clip by optical flow, where depths are known, and by essential matrices.
"""

import time
from collections.abc import Callable, Mapping
from functools import partial
from statistics import median

import numpy as np
import torch
from torch import Tensor

from lightning_modules.camvig import measuring
from lightning_modules.camvig.module import PROMPT, CamViG
from lightning_modules.camvig.paths import DIM, Bins, Residual
from lightning_modules.metrics.memory import peak_bytes
from lightning_modules.sequences.layout import Batch, Layout, arrange

TOKENIZER = {"frames": 17, "size": 32, "width": 8, "multipliers": (1, 1, 1), "blocks": 1, "halve_time": (True, True),
             "norm_groups": 8, "quantisation": "lookup_free", "codebook_size": 1024, "embedding_dim": None}  # fmt: skip
NETWORK = {"hidden_size": 256, "layers": 4, "heads": 4, "mlp_dim": 512}
PATHS = {"encoding": "bins", "codes": 64, "translation": 1.0, "rotation": 0.8, "unit": 1.0}
DRAWN = {"temperature": 0.0, "top_k": 0, "guidance": 0.0}
REPEATS, MANY = 3, 1024  # of each time but that without a cache, the median; paths that become tokens
SIDE, FOCAL = 128, 1.0  # of clips that a camera is measured in, the paper's; focal length in sides
Ways = Mapping[str, Callable[[], Tensor]]


def main() -> list[dict]:
    """Rows of each comparison; CPU time of one thread. 5 x 8 x 8 visual tokens and 96 of the path."""
    torch.set_num_threads(1)
    return [*writing(), *encoding(), *cameras()]


def writing() -> list[dict]:
    """A clip from its first frame and a path."""
    ours, guided, again = (_module(**options) for options in ({}, {"guidance": 1.0}, {"first_frame_again": True}))
    unpathed = arrange(
        ours.vocabulary, prompt=PROMPT, visual_places=ours.tokens, visual=ours.first, video=ours.tokens - ours.start,
        video_start=ours.start,
    )  # fmt: skip
    ways: Ways = {
        "cache": partial(_written, ours, ours.layout),
        "no cache": partial(_read_again, ours),
        "cache, guided by the path": partial(_written, guided, guided.layout),
        "cache, the first frame written again": partial(_written, again, again.layout),
        "cache, no places for a path": partial(_written, ours, unpathed),
    }
    seconds, ids = {}, {}
    ways["cache"]()  # the first call of all is slower
    for name, way in ways.items():
        times, found = zip(*(_timed(way) for _ in range(1 if name == "no cache" else REPEATS)), strict=True)
        seconds[name], ids[name] = median(times), found[0]
    whole = torch.cat([_given(ours, ours.layout).ids, ids["no cache"]], 1)[:, :-1]
    last = _given(ours, ours.layout)._replace(ids=whole, places=ours.layout.places[None, : whole.shape[1]])
    peaks = {"cache": peak_bytes(ways["cache"]), "no cache": peak_bytes(partial(ours.network.read, last))}
    same = torch.equal(ids["cache"], ids["no cache"])
    return [
        {
            "what": f"a clip of {ours.tokens} tokens: {name}",
            "ms of CPU": 1000 * seconds[name],
            "times the time": seconds[name] / seconds["cache"],
            **({"peak, MiB": peaks[name] / 2**20} if name in peaks else {}),
            **({"times the memory": peaks[name] / peaks["cache"]} if name in peaks else {}),
            **({"the same ids": str(same)} if name == "no cache" else {}),
        }
        for name in ways
    ]


def _module(first_frame_again: bool = False, **decoding: float) -> CamViG:
    torch.manual_seed(0)
    return CamViG(tokenizer=TOKENIZER, network=NETWORK, path_tokens=PATHS, first_frame_again=first_frame_again,
                  decoding=DRAWN | decoding, judged_rows=1).eval()  # fmt: skip


def _given(module: CamViG, layout: Layout, *, shown: bool = True) -> Batch:
    """The prefix of one clip, with a path of equal steps to the right, where it has places for it."""
    ids = module.vocabulary.visual_ids(torch.zeros(1, module.first, dtype=torch.long))
    parts = module.given(ids, module.path_ids(_steps(module.later), torch.tensor([shown])))
    return layout.batch({name: parts[name] for name in layout.names(given=True)}, whole=False)


def _steps(later: int) -> Tensor:
    path = torch.zeros(1, later, DIM)
    path[0, :, 0] = torch.linspace(1 / later, 1, later)
    return path


def _written(module: CamViG, layout: Layout) -> Tensor:
    guided = module.decoding["guidance"] > 0
    return module.network.generate(
        _given(module, layout), layout.slots, layout.places, generator=torch.Generator(),
        without=_given(module, layout, shown=False) if guided else None, **module.decoding,
    )  # fmt: skip


@torch.no_grad()
def _read_again(module: CamViG) -> Tensor:
    """The most probable ids, each after reading all before it."""
    given, layout, found = _given(module, module.layout), module.layout, []
    ids = given.ids
    for slot in layout.slots:
        now = given._replace(ids=ids, places=layout.places[None, : ids.shape[1]])
        logits = module.network.read(now)[:, -1] @ module.network.head.weight[slot].T
        found.append(slot.start + logits.argmax(-1))
        ids = torch.cat([ids, found[-1][:, None]], 1)
    return torch.stack(found, 1)


def encoding() -> list[dict]:
    """Paths that go to one place at equal steps and turn meanwhile, as tokens and back."""
    reach = {"translation": PATHS["translation"], "rotation": PATHS["rotation"]}
    ends = np.random.Generator(np.random.Philox(key=[0, 1])).uniform(-1, 1, (MANY, 1, DIM))
    steps = np.linspace(0, 1, TOKENIZER["frames"])[1:, None]
    bins, residual = Bins(64, **reach), Residual(64, **reach, frames=TOKENIZER["frames"])
    paths, rows = ends * steps * bins.reach, []
    learnt, _ = _timed(lambda: residual.vectors)
    for way, each, before in (("bins", bins, 0.0), ("residual vectors", residual, learnt)):
        apart = (each.decode(each.encode(paths)) - paths) / bins.reach
        rows.append(
            {
                "what": f"{MANY:,} paths as 96 tokens each: {way}",
                "ms of CPU": 1000 * _seconds(partial(each.encode, paths)),
                "once before, ms": 1000 * before,
                "error, percent of the reach": 100 * float(np.sqrt((apart**2).mean())),
            }
        )
    first = rows[0]["ms of CPU"]
    return [row | {"times the time": row["ms of CPU"] / first} for row in rows]


def cameras() -> list[dict]:
    """The camera of a clip of 17 frames, from its pixels."""
    frames = _moving()
    layers = np.zeros((SIDE, SIDE), np.int64)
    layers[SIDE // 2 :] = 1
    depths = {0: 4.0, 1: 2.0}
    focal, centre = np.full(2, FOCAL * SIDE), np.full(2, SIDE / 2)
    ways = {
        "optical flow and least squares": lambda: measuring.cameras(measuring.flows(frames), layers, depths, FOCAL),
        "essential matrices": lambda: [measuring.between(frames[0], later, focal, centre) for later in frames[1:]],
    }
    seconds = {name: _timed(way)[0] for name, way in ways.items()}
    first = next(iter(seconds.values()))
    return [
        {"what": f"the camera of 17 frames of {SIDE} pixels: {name}", "ms of CPU": 1000 * own,
         "times the time": own / first}
        for name, own in seconds.items()
    ]  # fmt: skip


def _moving() -> np.ndarray:
    """Frames of a smooth texture that goes one pixel to the left each time."""
    drawn = np.random.Generator(np.random.Philox(key=[0, 2])).integers(0, 256, (SIDE // 8, SIDE // 4, 3), np.uint8)
    cv2 = measuring.opencv()
    wide = cv2.resize(drawn, (2 * SIDE, SIDE), interpolation=cv2.INTER_CUBIC)
    return np.stack([wide[:, at : at + SIDE] for at in range(TOKENIZER["frames"])])


def _timed(call: Callable[[], Tensor]) -> tuple[float, Tensor]:
    """Seconds of CPU, and what the call gives."""
    start = time.process_time()
    found = call()
    return time.process_time() - start, found


def _seconds(call: Callable[[], object]) -> float:
    return median(_timed(call)[0] for _ in range(REPEATS))
