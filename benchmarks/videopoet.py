"""VideoPoet: a cache, windows, batches of one length, and a loss in chunks, each against the plain way.

- Keys and values that are kept, against reading all that was written again for each token.
- A block of the super-resolution on the paper's first stage, 5 x 56 x 32 tokens, with windows and with full attention.
- Training steps with one task each, against padded batches of several: useful tokens a second.
- Cross-entropy over 266,496 ids by chunks of places, against all logits at once. Memory is counted on the meta device.
"""

import time
from collections.abc import Callable, Mapping
from functools import partial

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import _measuring as measuring
from lightning_modules.metrics.compute import FLOPS_PER_MAC
from lightning_modules.metrics.memory import peak_bytes
from lightning_modules.sequences.layout import Batch, Layout, arrange
from lightning_modules.sequences.prefix_lm import PrefixLM
from lightning_modules.sequences.vocabulary import Vocabulary
from lightning_modules.videopoet.grouped import Alternation, padded, two_phases
from lightning_modules.videopoet.super_resolution import SuperResolution

SIZES = {"hidden_size": 256, "layers": 4, "heads": 4, "mlp_dim": 512}
VISUAL, GIVEN, TEXT = 320, 64, 16  # tokens of a clip and of its first frame, and words: a quarter of the paper's
STAGE = (5, 56, 32)
WINDOWS = {"windows": [[1, 56, 4], [1, 8, 32], [5, 8, 8]], "full attention": [STAGE] * 3}
IDS, PLACES, CHUNK = 266_496, 1280, 128
REPEATS = 3
STEPS, ROWS, MIXED = 12, 8, 4


def main() -> list[dict]:
    """Rows of each comparison; CPU time of one thread."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    return [*cache(), *windows(), *grouping(), *chunks()]


def cache() -> list[dict]:
    """A clip from its first frame, with and without a cache."""
    words = Vocabulary(1024, 0, 0, prompts=["task/video"])
    layout = arrange(words, prompt="task/video", visual_places=VISUAL, visual=GIVEN, video=VISUAL - GIVEN,
                     video_start=GIVEN)  # fmt: skip
    network = _network(len(words)).eval()
    given = layout.batch({"visual": words.visual_ids(torch.randint(1024, (1, GIVEN)))}, whole=False)
    ways = {"cache": partial(_with_cache, network, given, layout), "no cache": partial(_again, network, given, layout)}
    same = all(torch.equal(way(), ways["cache"]()) for way in ways.values())
    return _timed(f"{len(layout.slots)} ids after {layout.prefix}", ways, REPEATS, {"the same ids": str(same)})


def _with_cache(network: PrefixLM, given: Batch, layout: Layout) -> Tensor:
    return network.generate(given, layout.slots, layout.places, generator=torch.Generator(), temperature=0.0)


@torch.no_grad()
def _again(network: PrefixLM, given: Batch, layout: Layout) -> Tensor:
    """The most probable ids, each after reading all before it."""
    ids, found = given.ids, []
    for slot in layout.slots:
        now = given._replace(ids=ids, places=layout.places[None, : ids.shape[1]])
        logits = network.read(now)[:, -1] @ network.head.weight[slot].T
        found.append(slot.start + logits.argmax(-1))
        ids = torch.cat([ids, found[-1][:, None]], 1)
    return torch.stack(found, 1)


def windows() -> list[dict]:
    """A pass of a block; MACs of all of it, and the scores of its self-attentions."""
    tokens, rows = STAGE[0] * STAGE[1] * STAGE[2], []
    for way, sizes in WINDOWS.items():
        network = _block(sizes)
        inputs = _inputs(tokens)
        with torch.device("meta"), FlopCounterMode(display=False) as counter:
            _block(sizes)(**_inputs(tokens))
        seconds = measuring.seconds(partial(_pass, network, inputs), 1)
        rows.append(
            {
                "what": f"block of the super-resolution, 5 x 56 x 32 tokens: {way}",
                "ms of CPU": 1000 * seconds,
                "GMACs": counter.get_total_flops() / FLOPS_PER_MAC / 1e9,
                "scores": network.scores(),
                "peak, MiB": peak_bytes(partial(_pass, network, inputs)) / 2**20,
            }
        )
    first = rows[0]
    return [row | {"times the time": row["ms of CPU"] / first["ms of CPU"],
                   "times the MACs": row["GMACs"] / first["GMACs"],
                   "times the scores": row["scores"] / first["scores"]} for row in rows]  # fmt: skip


def _block(sizes: list) -> SuperResolution:
    return SuperResolution(
        grid=STAGE, bits=(9, 9), text_dim=64, windows=sizes, blocks=1, hidden_size=64, mlp_dim=256, heads=1
    ).eval()


def _inputs(tokens: int) -> dict[str, Tensor]:
    draw = {"high": tokens, "low": tokens // 4}
    high, low = (torch.zeros(1, count, dtype=torch.long) for count in draw.values())
    return {"tokens": high, "low": low, "text": torch.zeros(1, 8, 64), "seen": torch.ones(1, 8, dtype=torch.bool)}


@torch.inference_mode()
def _pass(network: SuperResolution, inputs: Mapping[str, Tensor]) -> Tensor:
    return network(**inputs)[0]


def grouping() -> list[dict]:
    """Forward and backward passes of as many sequences, one task a step or four tasks in each."""
    words = Vocabulary(1024, 2, 64, prompts=["task/video", "task/image", "task/sound"])
    options = {"visual_places": VISUAL, "audio_frames": 53}
    video = {"prompt": "task/video", "video": VISUAL, **options}
    layouts = {
        "t2i": arrange(words, prompt="task/image", text=TEXT, video=GIVEN, ends=False, **options),
        "t2v": arrange(words, text=TEXT, **video),
        "a2v": arrange(words, audio=106, **video),
        "outpaint": arrange(words, visual=VISUAL, **video),
        "v2a": arrange(words, prompt="task/sound", visual=VISUAL, sound=106, **options),
    }
    order = Alternation(two_phases({"t2i": 1}, dict.fromkeys(list(layouts)[1:], 1), first=0.5))
    network, rows = _network(len(words)).train(), {}
    for way, mixed in (("one task a step", 1), ("four tasks, padded", MIXED)):
        names = [order.task(step, STEPS * MIXED) for step in range(STEPS * MIXED)]
        batches = [_drawn(layouts[name], words, ROWS // MIXED) for name in names]
        if mixed == 1:
            steps = [_drawn(layouts[name], words, ROWS) for name in names[::MIXED]]
        else:
            steps = [padded(batches[at : at + MIXED], words.special("pad")) for at in range(0, len(batches), MIXED)]
        useful = sum(float(s.ids.numel() if s.lengths is None else s.lengths.sum()) for s in steps)
        start = time.process_time()
        for each in steps:
            network.loss(each).backward()
        seconds = time.process_time() - start
        rows[way] = {
            "what": f"{STEPS} training steps of {ROWS} sequences: {way}",
            "useful tokens a second": useful / seconds,
            "padding, percent": 100 * (1 - useful / sum(step.ids.numel() for step in steps)),
        }
    first, second = rows.values()
    ratio = first["useful tokens a second"] / second["useful tokens a second"]
    return [first | {"times faster": ratio}, second]


def _drawn(layout: Layout, words: Vocabulary, rows: int) -> Batch:
    """Sequences of a layout that hold anything."""
    ids = torch.randint(words.special("pad") + 1, len(words), (rows, layout.length))
    return Batch(ids=ids, places=layout.places[None], prefix=layout.prefix)


def chunks() -> list[dict]:
    """The loss of a clip's places and its gradient."""
    rows = []
    for way, size in ((f"chunks of {CHUNK}", CHUNK), ("all at once", PLACES)):
        with torch.device("meta"):
            network = _network(IDS, chunk=size)
            hidden = torch.zeros(PLACES, SIZES["hidden_size"], requires_grad=True)
            truth = torch.zeros(PLACES, dtype=torch.long)
        peak = peak_bytes(partial(_loss, network, hidden, truth))
        rows.append({"what": f"loss over {IDS:,} ids at {PLACES:,} places: {way}", "peak, MiB": peak / 2**20})
    small = PLACES // 8
    network = _network(IDS, chunk=small)
    hidden, truth = torch.randn(small, SIZES["hidden_size"], requires_grad=True), torch.zeros(small, dtype=torch.long)
    for row, size in zip(rows, (CHUNK // 8, small), strict=True):
        network.chunk = size
        row["ms of CPU, an eighth of the places"] = 1000 * measuring.seconds(partial(_loss, network, hidden, truth), 1)
    first = rows[0]
    return [row | {"times the memory": row["peak, MiB"] / first["peak, MiB"]} for row in rows]


@torch.enable_grad()
def _loss(network: PrefixLM, hidden: Tensor, truth: Tensor) -> None:
    network._surprise(hidden, truth).mean().backward()
    network.zero_grad(set_to_none=True)


def _network(vocabulary: int, chunk: int = 8192) -> PrefixLM:
    return PrefixLM(vocabulary=vocabulary, places=VISUAL + 106, chunk=chunk, **SIZES)


def _timed(what: str, ways: Mapping[str, Callable[[], object]], repeats: int, more: Mapping[str, str]) -> list[dict]:
    seconds = {name: measuring.seconds(way, repeats) for name, way in ways.items()}
    first = next(iter(seconds.values()))
    return [{"what": f"{what}: {name}", "ms of CPU": 1000 * own, "times the time": own / first, **more}
            for name, own in seconds.items()]  # fmt: skip
