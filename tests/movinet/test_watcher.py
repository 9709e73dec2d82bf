"""Answers about videos as a user asks for them: files, and what runs from standard input or a camera."""

import json
import logging
import os
import re
import select
import signal
import sys
import threading
import weakref
from fractions import Fraction
from functools import partial
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from lightning_modules import processes
from lightning_modules.datasets.video.drawn import encode, numbers
from lightning_modules.datasets.video.files import BrokenVideo, read_frames, resized
from lightning_modules.datasets.video.sequences import central_square
from lightning_modules.datasets.world.views import ACTIONS
from lightning_modules.files import write_json
from lightning_modules.movinet import live, watcher
from lightning_modules.movinet.decoding import read_clip
from lightning_modules.movinet.module import MoViNets
from lightning_modules.movinet.watcher import Watcher
from lightning_modules.predictors import Predictor
from stages import predict

MODEL = dict(
    architecture=dict(stem=8, project=8, dense=8, blocks=[dict(width=8, stride=2, layers=["8@3x3x3"])]),
    num_classes=10, frames=6, size=16, dropout=0.0, drop_path=0.0,
)  # fmt: skip
STREAM = dict(form="2plus1d", causal=True, squeeze="2plus3d")


SHOW = partial(resized, size=16, antialias=True)
FILES = {"rate": 10.0, "temporal_stride": 2, "short_side": 20}  # settings of `ClipFiles`


def module(**options) -> MoViNets:
    torch.manual_seed(0)
    made = MoViNets(**MODEL, **options)
    for name, parameter in made.named_parameters():
        if name.endswith("scale"):
            parameter.data.fill_(0.5)
        elif name.endswith("classifier.weight"):
            parameter.data.mul_(100)  # so that answers differ from frame to frame
    return made.eval()


@pytest.fixture(scope="module")
def stream():
    return module(**STREAM)


@pytest.fixture
def feed(monkeypatch):
    """Puts bytes into standard input, as another process does through a pipe; calls among them are made in turn."""
    threads = []

    def write(descriptor, parts):
        try:
            with os.fdopen(descriptor, "wb", buffering=0) as file:
                for part in parts:
                    part() if callable(part) else file.write(part)
        except BrokenPipeError:
            pass

    def begin(*parts):
        ours, theirs = os.pipe()
        monkeypatch.setattr(sys, "stdin", os.fdopen(ours))
        threads.append(threading.Thread(target=write, args=(theirs, parts)))
        threads[-1].start()

    yield begin
    if threads:
        sys.stdin.close()
    for thread in threads:
        thread.join(10)
        assert not thread.is_alive()


def exported(folder: Path, made: MoViNets, **options) -> Path:
    """The results of an arm, as the pipeline leaves them."""
    run = folder / "runs/seed-0"
    run.mkdir(parents=True)
    save_file({name: x.contiguous() for name, x in made.state_dict().items()}, run / "weights.safetensors")
    model = {"_target_": "lightning_modules.movinet.module.MoViNets", **MODEL, **options}
    dataset = "data/datasets/world_actions/tiny"
    write_json(folder / "predictor.json", {"runs": str(run.parent), "model": model, "data": {}, "dataset": dataset})
    return folder


@pytest.fixture(scope="module")
def results(stream, tmp_path_factory):
    return exported(tmp_path_factory.mktemp("movinet-causal"), stream, **STREAM)


@pytest.fixture
def signals(monkeypatch):
    """The handlers of a stage, for one test."""
    old = {number: signal.getsignal(number) for number in processes.STOPPING}
    monkeypatch.setattr(processes, "asked", [])
    processes.stop_on_signals()
    yield
    for number, handler in old.items():
        signal.signal(number, handler)


def run(monkeypatch, capsys, *arguments, failed=None):
    monkeypatch.setattr(sys, "argv", ["predict", *map(str, arguments), "--json"])
    if failed is None:
        predict.main()
    else:
        with pytest.raises(ValueError, match=failed):
            predict.main()
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def whole(path, made: MoViNets) -> list[dict]:
    """What the network says of all frames of a file as one clip."""
    frames = torch.from_numpy(read_frames(path, np.arange, made.size, antialias=True))
    with torch.inference_mode():
        logits = made.networks[0].each_frame(made.read(frames.permute(3, 0, 1, 2)[None]))[0]
    shares, best = logits.softmax(1).max(1)
    rows = enumerate(zip(best.tolist(), shares.tolist(), strict=True), start=1)
    return [{"frame": number, "class": label, "probability": share} for number, (label, share) in rows]


def same(answers: list[dict], expected: list[dict]) -> bool:
    found = [{key: x[key] for key in ("frame", "class", "probability")} for x in answers]
    return found == [pytest.approx(row, abs=2e-6) for row in expected]


def test_a_file_is_answered_after_each_frame_as_its_whole_clip_is(stream, tmp_path):
    encode(tmp_path / "clip.mp4", 6)
    answers = list(Watcher(stream).answer(tmp_path / "clip.mp4"))
    assert same(answers, whole(tmp_path / "clip.mp4", stream))
    assert len({x["probability"] for x in answers}) == 6 and all(x["milliseconds"] > 0 for x in answers)
    base = module(form="2plus1d")
    (answer,) = Watcher(base).answer(tmp_path / "clip.mp4")
    assert 0 <= answer["class"] < 10 and 0 < answer["probability"] <= 1 and "milliseconds" not in answer
    with pytest.raises(BrokenVideo):
        next(Watcher(stream).answer(tmp_path / "none.mp4"))


@pytest.mark.parametrize(("members", "stride"), [(2, 2), (1, 2), (2, 1), (3, 2)])
def test_members_answer_with_the_mean_of_their_last_logits(members, stride, tmp_path, feed):
    made = module(**STREAM, members=members, stride=stride)
    encode(tmp_path / "clip.mkv", 6)
    frames = torch.from_numpy(read_frames(tmp_path / "clip.mkv", np.arange, 16, antialias=True))
    with torch.inference_mode():
        share, best = made(frames.permute(3, 0, 1, 2)[None])[0].softmax(0).max(0)
    feed((tmp_path / "clip.mkv").read_bytes())
    answers = list(Watcher(made).watch("-"))
    assert [x["frame"] for x in answers] == list(range(1, 7, stride if members < stride else 1))
    last = {key: answers[-1][key] for key in ("class", "probability")}
    assert last == pytest.approx({"class": int(best), "probability": float(share)}, abs=2e-6)
    assert list(Watcher(made).answer(tmp_path / "clip.mkv"))[-1].items() >= last.items()


@pytest.mark.parametrize(
    ("name", "codec", "options"),
    [
        ("clip.mkv", "mpeg4", {}),
        ("clip.ts", "mpeg2video", {}),
        ("clip.mp4", "mpeg4", {"movflags": "frag_keyframe+empty_moov"}),
        ("clip.y4m", "wrapped_avframe", {}),
    ],
)
def test_frames_from_standard_input_are_answered_as_the_whole_clip_is(
    name, codec, options, stream, results, tmp_path, feed, monkeypatch, capsys
):
    path = encode(tmp_path / name, 30, codec=codec, **options)
    feed(path.read_bytes())
    lines = run(monkeypatch, capsys, results, "-")
    assert len(lines) == 30 and same(lines, whole(path, stream))
    assert all(x["input"] == "-" and x["name"] == ACTIONS[x["class"]] and x["milliseconds"] > 0 for x in lines)


def test_pictures_one_after_the_other_are_a_video(stream, feed, tmp_path):
    frames = np.random.default_rng(0).integers(0, 256, (4, 16, 16, 3), dtype=np.uint8)
    for number, frame in enumerate(frames):
        Image.fromarray(frame).save(tmp_path / f"{number}.png")
    feed(*((tmp_path / f"{number}.png").read_bytes() for number in range(4)))
    found = list(live.running_frames("-", SHOW))
    assert np.array_equal(found, frames)


def test_answers_come_as_the_frames_do(results, tmp_path, feed, monkeypatch):
    """The second half of the video is written when the answers to the first have been read."""
    content = encode(tmp_path / "clip.mkv", 40).read_bytes()
    ours, theirs = os.pipe()
    monkeypatch.setattr(sys, "stdout", os.fdopen(theirs, "w"))
    monkeypatch.setattr(sys, "argv", ["predict", str(results), "-", "--json"])
    with os.fdopen(ours) as answers:
        early = []
        feed(content[: len(content) // 2], lambda: early.extend(answers.readline() for _ in range(10)),
             content[len(content) // 2 :])  # fmt: skip
        predict.main()
        sys.stdout.close()
        late = answers.readlines()
    assert [json.loads(line)["frame"] for line in early + late] == list(range(1, 41))


def test_no_frame_is_kept(stream, tmp_path, feed, monkeypatch):
    alive, most = set(), []

    def counted(*args, **options):
        picture = resized(*args, **options).copy()
        alive.add(id(picture))
        weakref.finalize(picture, alive.discard, id(picture))
        most.append(len(alive))
        return picture

    monkeypatch.setattr(watcher, "resized", counted)
    feed(encode(tmp_path / "clip.mkv", 60).read_bytes())
    assert len(list(Watcher(stream).watch("-"))) == 60 == len(most)
    assert max(most) <= 2


def written(path, rate, frames):
    """Matroska, whose times are whole milliseconds."""
    with av.open(str(path), "w") as container:
        video = container.add_stream("ffv1", rate=rate)
        video.width, video.height, video.pix_fmt = 32, 32, "yuv420p"
        for number in range(frames):
            picture = np.full((32, 32, 3), 20 + 5 * number, np.uint8)
            container.mux(video.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(video.encode())
    return path.read_bytes()


@pytest.mark.parametrize(
    ("rate", "fps", "expected"),
    [
        (10, 5, [0, 2, 4, 6, 8, 10]),
        (10, 4, [0, 3, 5, 8, 10]),  # due at 0, 0.25, 0.5, 0.75, 1 second
        (10, 100, list(range(12))),
        (30, 30, list(range(12))),
        (30, 10, [0, 3, 6, 9]),
        (Fraction(30000, 1001), 30000 / 1001, list(range(12))),
        (10, 0.5, [0]),
    ],
)
def test_frames_are_chosen_by_their_times(rate, fps, expected, tmp_path, feed):
    feed(written(tmp_path / "clip.mkv", rate, 12))
    assert numbers(np.stack(list(live.running_frames("-", SHOW, fps)))) == expected


def test_networks_that_learnt_from_files_see_the_clip_in_the_middle_at_their_rate(stream, tmp_path, monkeypatch):
    """Six frames, every second one, of a file of 43: frames 15 to 25, and a square out of 30 x 20 pixels of each."""
    made, seen = Watcher(stream, {"data": FILES}), []
    encode(tmp_path / "clip.mkv", 43)
    monkeypatch.setattr(made, "_after_each", lambda frames: seen.extend(frames) or [])
    assert list(made.answer(tmp_path / "clip.mkv")) == []
    assert numbers(np.stack(seen)) == [15, 17, 19, 21, 23, 25] and seen[0].shape == (16, 16, 3)
    whole = read_clip(tmp_path / "clip.mkv", lambda total: np.array([15]), lambda picture: picture, rate=10.0)[0]
    assert np.array_equal(seen[0], central_square(whole, 20, 16))


@pytest.mark.parametrize(("fps", "expected"), [(None, range(0, 30, 2)), (10, range(30))])
def test_what_runs_is_shown_at_the_rate_of_the_training_unless_another_is_given(
    fps, expected, stream, tmp_path, feed, monkeypatch
):
    made, seen = Watcher(stream, {"data": FILES}), []
    monkeypatch.setattr(made, "_after_each", lambda frames: seen.extend(frames) or [])
    feed(written(tmp_path / "clip.mkv", 10, 30))
    assert list(made.watch("-", fps)) == []
    assert numbers(np.stack(seen)) == list(expected)


@pytest.mark.parametrize("causal", [True, False])
def test_a_class_of_each_kind_or_one_of_many_is_told_as_it_was_learnt(causal, tmp_path, monkeypatch):
    """With the names of the card of the data set, where it is prepared; a network may have more classes than it."""
    monkeypatch.setattr(watcher, "ROOT", tmp_path)
    options = STREAM if causal else {"form": "2plus1d"}
    logits = torch.tensor([0.0, 3.0, 1.0, -1.0, 0.0, 2.0, 0.0, 0.0, 0.0, 0.0])
    clip = encode(tmp_path / "clip.mp4", 6)

    def answer(classes, **more):
        write_json(tmp_path / "data/datasets/epic/paper/card.json", {"classes": classes})
        made = module(**options, **more)
        for name, parameter in made.named_parameters():
            if name.endswith("classifier.weight"):
                parameter.data.zero_()
            elif name.endswith("classifier.bias"):
                parameter.data.copy_(logits)
        *_, found = Watcher(made, {"dataset": "data/datasets/epic/paper"}).answer(clip)
        return {key: x for key, x in found.items() if key not in ("frame", "milliseconds")}

    verb, noun = (part.softmax(0).max().item() for part in logits.split([4, 6]))
    kinds = {"targets": [["verb", 4], ["noun", 6]]}
    assert answer({"verb": ["take", "put"], "noun": ["tap"]}, **kinds) == {
        "verb": 1, "verb_name": "put", "verb_probability": pytest.approx(verb, abs=1e-5),
        "noun": 1, "noun_probability": pytest.approx(noun, abs=1e-5),
    }  # fmt: skip
    there = {"class": 1, "probability": pytest.approx(torch.tensor(3.0).sigmoid().item(), abs=1e-5)}
    assert answer({"action": ["sit", "eat"]}, targets="many") == {**there, "name": "eat"}
    one = pytest.approx(logits.softmax(0).max().item(), abs=1e-5)
    assert answer({"action": ["sit", "eat"]}) == {"class": 1, "name": "eat", "probability": one}
    (tmp_path / "data/datasets/epic/paper/card.json").unlink()
    assert Watcher(module(**options), {"dataset": "data/datasets/epic/paper"}).names == {}


def test_damaged_pictures_are_left_out_and_counted(stream, tmp_path, feed, caplog):
    content = bytearray(encode(tmp_path / "clip.mkv", 40).read_bytes())
    middle = len(content) // 2
    content[middle : middle + 200] = np.random.default_rng(0).bytes(200)
    feed(bytes(content))
    with caplog.at_level(logging.WARNING):
        found = len(list(Watcher(stream).watch("-")))
    assert 30 <= found < 40
    assert re.search(r"-: damaged pictures left out before frame 2\d: [1-9]", caplog.text)


@pytest.mark.parametrize(
    ("name", "options", "failed"),
    [
        ("clip.mkv", {}, None),  # ends between two pieces as far as can be seen
        ("clip.mp4", {"movflags": "frag_keyframe+empty_moov"}, "standard input breaks off: Invalid data"),
    ],
)
def test_a_video_that_breaks_off_has_been_answered_until_there(
    name, options, failed, results, tmp_path, feed, monkeypatch, capsys
):
    content = encode(tmp_path / name, 40, **options).read_bytes()
    feed(content[: len(content) // 2])
    assert 15 < len(run(monkeypatch, capsys, results, "-", failed=failed)) < 25


def test_a_camera_is_watched_until_ctrl_c(results, monkeypatch, capsys, signals):
    """The camera draws frames without end; the device is FFmpeg's."""
    monkeypatch.setattr(live, "CAMERAS", {live.platform.system(): ("lavfi", "testsrc=rate=10,trim=start={}", {})})
    said, count = predict.say, []

    def say(line, arguments):
        said(line, arguments)
        count.append(line)
        if len(count) == 5:
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(predict, "say", say)
    monkeypatch.setattr(sys, "argv", ["predict", str(results), "webcam:0", "--fps", "5"])
    predict.main()
    out, errors = capsys.readouterr()
    assert out.splitlines()[4].startswith("input webcam:0  frame 5  class ") and len(out.splitlines()) == 5
    assert errors == "stopped\n"


def test_ctrl_c_while_standard_input_is_waited_for(results, tmp_path, feed, monkeypatch, capsys, signals):
    content, read = encode(tmp_path / "clip.mkv", 40).read_bytes(), live._Pipe.read
    written, stopped, late, asked = threading.Event(), threading.Event(), [], []

    def interrupted(self, size):
        if written.is_set() and not asked and not select.select([sys.stdin], [], [], 0)[0]:
            asked.append(True)
            threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT)).start()
        return read(self, size)

    monkeypatch.setattr(live._Pipe, "read", interrupted)
    # half of the video, and then nothing comes, but it does not end
    feed(content[: len(content) // 2], written.set, lambda: stopped.wait(20) or late.append(True))
    monkeypatch.setattr(sys, "argv", ["predict", str(results), "-"])
    predict.main()
    stopped.set()
    out, errors = capsys.readouterr()
    assert not late and 15 < len(out.splitlines()) < 25 and errors == "stopped\n"


def test_who_reads_the_answers_may_go(results, tmp_path, feed, monkeypatch):
    ours, theirs = os.pipe()
    monkeypatch.setattr(sys, "stdout", os.fdopen(theirs, "w"))
    monkeypatch.setattr(sys, "argv", ["predict", str(results), "-"])
    feed(encode(tmp_path / "clip.mkv", 40).read_bytes())
    os.close(ours)
    predict.main()
    sys.stdout.close()  # nothing is left that could not be written


def sound() -> bytes:
    """A second of silence as WAV."""
    size = 16000
    head = b"RIFF%sWAVEfmt \x10\0\0\0\1\0\1\0\x40\x1f\0\0\x80\x3e\0\0\2\0\x10\0data%s"
    return head % ((36 + size).to_bytes(4, "little"), size.to_bytes(4, "little")) + bytes(size)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "standard input is empty"),
        (np.random.default_rng(0).bytes(100_000), "standard input cannot be read as a video: Invalid data.*"
         "; expected a container that is read from front to back, say ffmpeg -i clip.mp4 -f matroska - "),
        (b"<html>" * 2000, "standard input cannot be read as a video"),
        (b"hello\x1b[1m\r\n" * 2000, "standard input cannot be read as a video"),
        (sound(), "- holds no video"),
    ],
    ids=["empty", "garbage", "page", "text", "sound"],
)  # fmt: skip
def test_what_is_no_video_is_refused(content, message, results, feed, monkeypatch, capsys):
    feed(content)
    assert run(monkeypatch, capsys, results, "-", failed=message) == []


def test_a_file_that_is_read_from_its_end_is_refused(results, tmp_path, feed, monkeypatch, capsys):
    content = encode(tmp_path / "clip.mp4", 200).read_bytes()  # its index is behind the frames
    feed(content[:20_000], lambda: None, content[20_000:])
    run(monkeypatch, capsys, results, "-", failed="standard input breaks off: Inv.* from front to back, say ffmpeg -i")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-", "--among", "pictures"], "--among is pictures, but Watcher chooses from nothing"),
        (["-", "--top", "0"], "--top is 0, expected at least 1"),
        (["-", "clip.mp4"], "- is a running video and has no place beside other inputs: give it alone"),
        (["clip.mp4", "webcam:1"], "webcam:1 is a running video"),
        (["clip.mp4", "--fps", "5"], "--fps is for - and webcam:0; a file is read as the model was trained"),
        (["-", "--fps", "0"], "fps is 0.0, expected a number above 0"),
        (["-", "--fps", "nan"], "fps is nan, expected a number above 0"),
        (["webcam:99"], r"webcam:99 \(/dev/video99\) cannot be read: No such file or directory"),
        (["webcam:front"], "webcam:front is no running video; expected - for standard input, or webcam:0"),
    ],
)
def test_requests_that_cannot_be_met_are_refused_before_anything_is_read(
    arguments, message, results, monkeypatch, capsys
):
    monkeypatch.setattr(live.platform, "system", lambda: "Linux")
    monkeypatch.setattr(sys, "stdin", None)
    assert run(monkeypatch, capsys, results, *arguments, failed=message) == []


def test_nothing_is_written_and_a_ranking_has_one_row(results, tmp_path, feed, monkeypatch, capsys):
    feed(encode(tmp_path / "clip.mkv", 3).read_bytes())
    assert len(run(monkeypatch, capsys, results, "-", "--top", 5, "--out", tmp_path / "out")) == 3
    assert not (tmp_path / "out").exists()


def test_a_terminal_and_other_systems_are_refused(monkeypatch):
    for closed in (None, type("Terminal", (), {"isatty": lambda self: True})()):
        monkeypatch.setattr(sys, "stdin", closed)
        with pytest.raises(ValueError, match="nothing is piped into standard input; expected a video, such as ffmpeg"):
            next(live.running_frames("-", SHOW))
    monkeypatch.setattr(live.platform, "system", lambda: "Windows")
    with pytest.raises(ValueError, match="webcam:0: cameras are read on Linux and Darwin; pipe a video in: ffmpeg"):
        next(live.running_frames("webcam:0", SHOW))


def test_who_cannot_watch_says_so(tmp_path, monkeypatch, capsys):
    base = exported(tmp_path / "movinet", module(form="2plus1d"), form="2plus1d")
    run(monkeypatch, capsys, base, "-", failed="this network sees later frames, so it cannot answer about - before")
    write_json(tmp_path / "predictor.json", {"loader": "tests.movinet.test_watcher.still"})
    run(monkeypatch, capsys, tmp_path, "webcam:0", failed="Predictor answers about files and cannot watch webcam:0")


def still(folder) -> Predictor:
    return Predictor()
