"""MoViNets: one frame of a stream, memory, forms of convolution, training steps; against the port where it is given.

The port is github.com/Atze00/MoViNet-pytorch. MOVINET_PORT names a folder that holds it and fvcore, which it imports
(`pip install --target`); without it, its rows are left out. Ours is given the port's weights, and both must give the
same logits before anything is timed.
"""

import importlib
import os
import sys
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks import _measuring as measuring
from lightning_modules.metrics.memory import peak_bytes
from lightning_modules.movinet.network import MoViNet
from lightning_modules.movinet.weights import load_port

FRAMES, SIZE, CLASSES = 50, 172, 600  # A0 on Kinetics-600
STREAM = dict(form="2plus1d", causal=True, squeeze="2plus3d", activation="hard_swish", gate="hard_sigmoid")
LENGTHS = (8, 16, 32, 64, 128, 256)
STEP = (2, 3, 8, SIZE, SIZE)  # clips of a training step
REPEATS = 5


def main() -> list[dict]:
    """Rows of each comparison; CPU time of one thread."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    return [*_frame_rows(), *_memory_rows(), *_step_rows()]


def _frame_rows() -> list[dict]:
    """The last frame of a clip: with the state of the frames before, and without."""
    stream, port = _pair(STREAM)
    video = torch.rand(1, 3, FRAMES, SIZE, SIZE)
    frame = video[:, :, -1:]
    with torch.inference_mode():
        _, state = stream.stream(video[:, :, :-1])
        whole = stream(video)
        torch.testing.assert_close(stream.stream(frame, state)[0][:, 0], whole, atol=1e-5, rtol=1e-4)
        ways = {"the stream": lambda: stream.stream(frame, state), "the whole clip again": lambda: stream(video)}
        if port is not None:
            port(video[:, :, :-1])
            torch.testing.assert_close(port(frame), whole, atol=1e-5, rtol=1e-4)
            ways["the port's stream"] = lambda: port(frame)
        seconds = measuring.in_turns(ways, REPEATS, warm=1)
    return [
        {
            "what": f"A0 at {SIZE}, frame {FRAMES}: {way}",
            "ms of CPU": 1000 * value,
            "times ours": value / seconds["the stream"],
        }
        for way, value in seconds.items()
    ]


@torch.inference_mode()
def _memory_rows() -> list[dict]:
    """Bytes of all tensors at one time while clips are read on the CPU, frames included and weights not."""
    networks = {
        "base": MoViNet("a0", CLASSES, form="2plus1d").eval(),
        "stream": MoViNet("a0", CLASSES, **STREAM).eval(),
    }

    def base(frames: int) -> None:
        networks["base"](torch.rand(1, 3, frames, SIZE, SIZE))

    def stream(frames: int) -> None:
        state = None
        for _ in range(frames):
            _, state = networks["stream"].stream(torch.rand(1, 3, 1, SIZE, SIZE), state)

    rows = []
    for frames in LENGTHS:
        whole, streamed = (peak_bytes(lambda read=read, n=frames: read(n)) for read in (base, stream))
        rows.append(
            {
                "what": f"A0 at {SIZE}, {frames} frames: peak memory",
                "base, MB": whole / 1e6,
                "stream, MB": streamed / 1e6,
                "times smaller": whole / streamed,
                "target": "stream: the same for every length",
            }
        )
    return rows


def _step_rows() -> list[dict]:
    """Forward and backward pass: the released base and stream, the base's forms, and the port's same networks."""
    video, labels = torch.rand(STEP), torch.arange(STEP[0])
    ways: dict[str, Callable[[], None]] = {}
    for name, options in {"base, 3d": {}, "stream, 2plus1d": STREAM}.items():
        ours, port = _pair(options)
        ways[name] = _step(ours, video, labels)
        if port is not None:
            ways[f"{name}: the port"] = _step(port, video, labels)
    for name in ("3d_2plus1d", "2plus1d"):
        ways[f"base, {name}"] = _step(MoViNet("a0", CLASSES, form=name, dropout=0.0, drop_path=0.0), video, labels)
    seconds = measuring.in_turns(ways, REPEATS, warm=1)
    return [
        {
            "what": f"A0 at {SIZE}, {STEP[0]} clips of {STEP[2]} frames, forward and backward: {name}",
            "ms of CPU": 1000 * value,
            "times ours": value / seconds[name.removesuffix(": the port")],
            "times 3d": value / seconds["base, 3d"] if name.startswith("base") and "port" not in name else None,
            "target": "1.5 times ours" if "port" in name else None,
        }
        for name, value in seconds.items()
    ]


def _step(network: nn.Module, video: Tensor, labels: Tensor) -> Callable[[], None]:
    network.train()

    def step() -> None:
        network.zero_grad()
        if hasattr(network, "clean_activation_buffers"):
            network.clean_activation_buffers()
        F.cross_entropy(network(video), labels).backward()

    return step


def _pair(options: dict) -> tuple[MoViNet, nn.Module | None]:
    """Ours and, if it is there, the port's A0 with the same weights."""
    ours = MoViNet("a0", CLASSES, **options, dropout=0.0, drop_path=0.0).eval()
    for name, parameter in ours.named_parameters():
        if name.endswith("scale"):
            nn.init.constant_(parameter, 0.5)  # at zero, layers would not be seen in the logits
    folder = os.environ.get("MOVINET_PORT")
    if not folder:
        return ours, None
    sys.path.insert(0, folder)
    models, config = (importlib.import_module(f"movinets.{name}") for name in ("models", "config"))
    sys.path.remove(folder)
    causal = bool(options)
    port = models.MoViNet(
        config._C.MODEL.MoViNetA0, causal=causal, num_classes=CLASSES, conv_type="2plus1d" if causal else "3d",
        tf_like=True,
    ).eval()  # fmt: skip
    for name, parameter in port.named_parameters():
        if name.endswith("alpha"):
            nn.init.constant_(parameter, 0.5)
    for part in port.modules():
        if isinstance(part, nn.Dropout):
            part.p = 0.0
    load_port(ours, port.state_dict())
    with torch.inference_mode():
        clip = torch.rand(1, 3, 4, SIZE, SIZE)
        torch.testing.assert_close(port(clip), ours(clip), atol=1e-5, rtol=1e-4)
    if causal:
        port.clean_activation_buffers()
    return ours, port
