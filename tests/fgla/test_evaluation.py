"""What is measured of clips: closed forms, baselines, and the true flow as the best there is."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from lightning_modules.datasets.world import timelapse
from lightning_modules.fgla import evaluation
from lightning_modules.fgla.clips import TimelapseClips
from lightning_modules.fgla.evaluation import coloured, evaluate, scores, wheel
from lightning_modules.fgla.measuring import still_seen
from lightning_modules.fgla.module import Fgla
from lightning_modules.metrics.claims import load_facts
from lightning_modules.metrics.generation import frechet_distance
from lightning_modules.metrics.motion import DrawnFeatures, absolute_error, end_point_error, sharpness
from lightning_modules.runs import Run
from stages.composing import compose

FRAMES, SIZE, ROWS = 4, 16, 20


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("timelapse") / "new"
    timelapse.prepare(folder, seed=5, sizes={"train": 32, "val": 32}, image_size=SIZE, frames=FRAMES)
    return folder


def clips(folder, **changes):
    splits = {"train": {"source": "train", "rows": 32}, "val": {"source": "val", "rows": ROWS}}
    options = {"splits": splits, "window": 3, "batch_size": 8, "evaluation_batch_size": 12}
    return TimelapseClips(folder=folder, seed=0, **options | changes)


def make(**changes):
    model = compose("tiny", system="fgla")["system"]["model"] | {"size": SIZE, "frames": FRAMES, "codebook": 6}
    model.pop("_target_")
    model["generator"]["reach"], model["encoder"]["code_dim"] = 0.125, 2
    model["encoder"] |= changes
    torch.manual_seed(0)
    return Fgla(**model)


class Stored(Run):
    def __init__(self, arrays, module, folder=Path()):
        super().__init__(folder=folder, seed=0)
        object.__setattr__(self, "arrays", arrays)
        self.__dict__["facts"] = module.facts()

    def predictions(self):
        return self.arrays


@pytest.fixture(scope="module")
def judged(folder):
    module, data = make(variational=True), clips(folder)
    module.fill(data)
    return module, {k: x.numpy() for k, x in module.predictions(data, torch.device("cpu")).items()}


def test_an_untrained_module_is_measured_whole(judged):
    module, arrays = judged
    assert all(len(values) in (ROWS, 8) for values in arrays.values())
    found = evaluate([Stored(arrays, module)], "world_timelapse")
    metrics = {name.removeprefix("world_timelapse/"): value for name, value in found.metrics[0].items()}
    for source in ("reconstruction", "retrieval", "prior"):
        assert {f"{source}/{name}" for name in ("clip_l1", "last_l1", "ssim", "frechet_drawn")} <= set(metrics)
    assert metrics["copy/epe"] > metrics["mean/epe"] > 0 and metrics["code_numbers"] == 32
    assert metrics["accumulated/true_last_l1"] < 0.5 * metrics["copy/last_l1"]
    assert metrics["accumulated/true_last_l1"] < metrics["by_frame/true_last_l1"]
    assert metrics["accumulated/sharpness"] >= metrics["by_frame/sharpness"]
    parts = np.array([metrics[f"epe/{name}"] for name in ("left_sky", "right_sky", "water", "hill")])
    assert parts.min() >= 0 and parts.max() > metrics["epe"] > parts.min()
    assert [gallery.id for gallery in found.galleries] == ["clips", "flows"]
    assert set(found.not_computed) == {"fvd", "inception_score", "lpips", "votes"}


def test_a_figure_compares_errors_over_the_same_pixels(judged):
    module, arrays = judged
    steps, finished = evaluate([Stored(arrays, module)], "x").figures
    assert (steps.id, finished.id) == ("steps", "finished")
    assert [series.name for series in finished.series] == list(evaluation.SOURCES.values())
    told = ["warped at once", "warped frame by frame", "first frame again", "mean of the true flow"]
    assert [series.name for series in steps.series] == told
    assert "show what the first frame showed" in steps.caption and "all pixels" in finished.caption
    for name, series in zip(("accumulated", "by_frame", "copy", "mean"), steps.series, strict=True):
        np.testing.assert_allclose(series.y, arrays[f"{name}/l1"].mean(0), atol=1e-6)
    for name, series in zip(evaluation.SOURCES, finished.series, strict=True):
        np.testing.assert_allclose(series.y, arrays[f"{name}/l1"].mean(0), atol=1e-6)


def test_votes_are_those_of_the_arm_whose_films_were_shown_first(judged, tmp_path):
    module, arrays = judged
    key = {"study": "s", "first": "films/fgla", "second": "films/fgla-global",
           "pairs": [{"name": "a.mp4", "first": "left"}]}  # fmt: skip
    ballot = {"study": "s", "subject": "x", "votes": [{"pair": 0, "chosen": "left"}]}
    (tmp_path / "key.json").write_text(json.dumps(key))
    (tmp_path / "votes-x.json").write_text(json.dumps(ballot))
    for arm, there in (("fgla", True), ("fgla-global", False), ("fgla-spade", False)):
        run = Stored(arrays, module, Path("data/runs/tiny", arm, "pretrain/seed-0"))
        found = evaluate([run], "x", study=str(tmp_path))
        assert ("x/votes/percent" in found.metrics[0]) == there
        assert there or f"of 'fgla' and 'fgla-global', not of {arm!r}" in found.not_computed["votes"]


def test_every_metric_of_a_claim_is_computed(judged):
    module, arrays = judged
    metrics = evaluate([Stored(arrays, module)], "world_timelapse").metrics[0]
    facts = load_facts(Path(evaluation.__file__).with_name("facts.yaml"))
    asked = {operand.metric for claim in facts.claims if "tiny" in claim.presets for operand in claim.operands}
    assert asked <= set(metrics)


def test_clips_without_a_known_flow_have_no_end_point_error(folder):
    module = make(sees=["frames"])

    class Unknown(TimelapseClips):
        def evaluation_batches(self, split):
            for batch in super().evaluation_batches(split):
                yield {"video": batch["video"], "labels": batch["rows"], "broken": 0}

    splits = {"train": {"source": "train", "rows": 32}, "val": {"source": "val", "rows": ROWS}}
    data = Unknown(folder=folder, seed=0, splits=splits, batch_size=4, evaluation_batch_size=12)
    arrays = {k: x.numpy() for k, x in module.predictions(data, torch.device("cpu")).items()}
    found = scores(arrays)
    assert not any("epe" in name for name in found) and "accumulated/last_l1" in found and "l1" in found


def test_the_first_frame_is_still_seen_where_the_flow_leads_back_to_it():
    visible = torch.ones(1, 3, 4, 4, dtype=torch.bool)
    visible[..., 0] = False  # everything comes from the left
    flow = torch.zeros(1, 3, 2, 4, 4)
    flow[:, :, 0] = -1
    seen = still_seen(visible, flow)
    assert [seen[0, step, 0].tolist() for step in range(3)] == [
        [False, True, True, True], [False, False, True, True], [False, False, False, True]
    ]  # fmt: skip


def test_numbers_of_motion_in_closed_form():
    flow = torch.zeros(2, 3, 2, 4, 4)
    flow[:, :, 0], flow[:, :, 1] = 3, 4
    assert torch.equal(end_point_error(flow, 0 * flow), torch.full((2, 3, 4, 4), 5.0))
    video = torch.zeros(1, 3, 2, 4, 4)
    other = video.clone()
    other[:, :, 1, :2] = 0.5
    assert absolute_error(video, other).tolist() == [[0.0, 0.25]]
    where = torch.zeros(1, 2, 4, 4, dtype=torch.bool)
    where[:, 1, 0] = True
    assert absolute_error(video, other, where).tolist() == [[0.0, 0.5]]
    assert sharpness(other)[0].tolist() == pytest.approx([0, 0.5 * 0.5 / 3])


def test_drawn_features_are_always_the_same_and_tell_clips_apart():
    video = torch.rand(40, 3, 5, 16, 16, generator=torch.Generator().manual_seed(0))
    one, two = DrawnFeatures()(video), DrawnFeatures()(video)
    assert torch.equal(one, two) and one.shape == (40, 16) and not list(DrawnFeatures().state_dict())
    real, grey = one.double().numpy(), DrawnFeatures()(0.2 + 0.5 * video).double().numpy()
    assert frechet_distance(real, real) == pytest.approx(0, abs=1e-9) and frechet_distance(real, grey) > 1e-3


def test_colours_of_flows_are_directions():
    one = np.ones((1, 1))
    told = {(1, 0): [255, 0, 0], (0, 0): [255, 255, 255], (-1, 0): [0, 255, 255], (3, 0): [255, 0, 0]}
    for (x, y), colour in told.items():
        assert coloured(np.stack([x * one, y * one]), 1.0)[0, 0].tolist() == colour
    up, down = (coloured(np.stack([0 * one, y * one]), 1.0)[0, 0] for y in (-1, 1))
    assert up[1] > up[2] and down[2] > down[1]
    assert wheel().shape == (64, 64, 3) and (wheel()[0, 0] == 255).all()


def test_windows_are_drawn_by_seed_and_epoch_and_show_what_flows_say(folder):
    data = clips(folder)
    windows = data.train_dataloader().dataset
    one, again, later = windows[(0, 0)], windows[(0, 0)], windows[(1, 0)]
    assert all(torch.equal(one[name], again[name]) for name in one)
    assert not torch.equal(one["rows"], later["rows"])
    assert one["video"].shape == (8, 3, 3, SIZE, SIZE) and one["flow"].shape == (8, 2, 2, SIZE, SIZE)
    seen = torch.cat([windows[(0, place)]["rows"] for place in range(len(windows))])
    assert sorted(seen.tolist()) == list(range(32))
    whole = next(iter(data.evaluation_batches("train")))
    row = next(n for n, clip in enumerate(one["rows"].tolist()) if clip < 12)
    at, start = int(one["rows"][row]), int(one["starts"][row])
    assert torch.equal(one["video"][row], whole["video"][at, :, start : start + 3])
    assert torch.equal(one["flow"][row], whole["flow"][at, start : start + 2])


def test_others_have_the_layout_of_their_clips_and_daylight_darkens(folder):
    day, lit = (next(iter(clips(folder, daylight=each).evaluation_batches("val"))) for each in (False, True))
    assert (lit["video"] <= day["video"]).all() and not torch.equal(lit["video"], day["video"])
    assert torch.equal(lit["flow"], day["flow"])
    parts, other = day["parts"], day["other"]
    assert other.shape == (12, 3, SIZE, SIZE) and not torch.equal(other, day["video"][:, :, 0])
    assert parts.shape == (12, SIZE, SIZE)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"window": 1}, r"window is 1, expected at least 2 frames"),
        ({"window": 5}, r"window is 5, but the clips have 4"),
    ],
)
def test_windows_that_cannot_be_are_refused(folder, changed, message):
    with pytest.raises(ValueError, match=message):
        clips(folder, **changed).train_dataloader()


def test_nothing_is_evaluated_without_runs():
    with pytest.raises(ValueError, match="there is no trained arm to evaluate"):
        evaluate([], "x")


def test_the_distance_of_drawn_features_is_blind_to_motion(folder):
    splits = {name: {"source": name, "rows": 32} for name in ("train", "val")}
    batches = [batch for split in splits for batch in clips(folder, splits=splits).evaluation_batches(split)]
    real = torch.cat([batch["video"] for batch in batches]) / 255
    seen = {"real": real, "resting": real[:, :, :1].expand_as(real), "reversed": real.flip(2)}
    found = {name: DrawnFeatures()(video).double().numpy() for name, video in seen.items()}
    between = frechet_distance(found["real"][::2], found["real"][1::2])
    assert frechet_distance(found["resting"], found["real"]) < between
    assert frechet_distance(found["reversed"], found["real"]) < between


def test_claims_without_chance_or_with_a_corrected_wording_say_so():
    facts = load_facts(Path(evaluation.__file__).with_name("facts.yaml"))
    claims = {claim.id: claim for claim in facts.claims}
    assert "chance plays no part" in claims["C3-accumulated"].note
    assert claims["C2-mean"].post_hoc and "Only the wording was corrected" in claims["C2-mean"].note
    assert "best" not in claims["C2-mean"].statement and "minimises" in claims["C5-supervision"].note
    assert any("blind to motion" in told for told in facts.differences)
