"""CamViG: sequences with and without paths, clips, and what is measured in them."""

from pathlib import Path

import numpy as np
import pytest
import torch
from pytorch_lightning import LightningDataModule

from lightning_modules.camvig import evaluation
from lightning_modules.camvig.evaluation import agreement, by_depths, evaluate, further
from lightning_modules.camvig.module import CamViG
from lightning_modules.metrics.claims import load_facts
from lightning_modules.runs import Run
from stages.composing import compose
from tests.camvig.test_clips import data, folder  # noqa: F401

FACTS = Path(evaluation.__file__).with_name("facts.yaml")
OPTIONS = {"network": {"hidden_size": 16, "layers": 1, "heads": 2, "mlp_dim": 16}, "judged_rows": 24}


def config(**changes):
    model = compose("tiny", system="camvig")["system"]["model"] | OPTIONS | changes
    return {name: value for name, value in model.items() if name != "_target_"}


@pytest.fixture
def module():
    torch.manual_seed(0)
    return CamViG(**config())


def batch(rows=3):
    torch.manual_seed(1)
    path = torch.zeros(rows, 4, 6)
    path[:, :, 0] = torch.linspace(0.1, 0.4, 4)
    return {"video": torch.randint(0, 256, (rows, 3, 5, 16, 16), dtype=torch.uint8), "path": path,
            "posed": torch.arange(rows) > 0, "labels": torch.full((rows,), 4)}  # fmt: skip


def test_a_sequence_has_the_first_frame_the_path_and_the_others(module):
    module.eval()
    found = module.sequences(batch())
    words, tokens = module.vocabulary, module.encoded(batch()["video"] / 255)
    spans = {name: found.ids[:, module.layout.span(name)] for name in ("visual", "audio", "video")}
    assert torch.equal(words.visual_tokens(spans["visual"]), tokens[:, :16])
    assert torch.equal(words.visual_tokens(spans["video"]), tokens[:, 16:])
    assert (spans["audio"][0] == words.special("pad")).all()  # a clip without a path
    codes = words.audio_tokens(spans["audio"][1:])
    assert codes.shape == (2, 4, 6) and (codes[..., 1:] == 32).all() and (codes[..., 0] > 32).all()
    axes = spans["audio"][1].view(6, 4)  # one axis after another, each with ids of its own
    assert (axes[:-1].max(1).values < axes[1:].min(1).values).all()


def test_a_model_without_paths_never_sees_one(module):
    blind = CamViG(**config(paths=False)).eval()
    assert (blind.sequences(batch()).ids[:, blind.layout.span("audio")] == blind.vocabulary.special("pad")).all()


def test_some_paths_are_left_out_in_training_alone():
    module = CamViG(**config(path_drop=1.0))
    pad = module.vocabulary.special("pad")
    assert (module.sequences(batch()).ids[:, module.layout.span("audio")] == pad).all()
    shown = module.eval().sequences(batch()).ids[1:, module.layout.span("audio")]
    assert (shown != pad).all()


def test_numbers_of_tokens_of_the_paper():
    oracles = {o.name: o.model_extra["tokens"] for o in load_facts(FACTS).oracles}
    settings = compose("paper", system="camvig")["system"]["model"] | {"network": OPTIONS["network"]}
    settings["tokenizer"] |= {"width": 2, "norm_groups": 2}
    settings.pop("_target_")
    for again, written in ((False, "written"), (True, "written-all")):
        with torch.device("meta"):
            module = CamViG(**settings | {"first_frame_again": again})
        told = module.facts()
        assert told["given_tokens"] == oracles["given"] and told["path_tokens"] == oracles["path"]
        assert told["written_tokens"] == oracles[written]
        assert sum(name == "video" for name in module.layout.content) == oracles[written]


@pytest.mark.parametrize("again", [False, True])
@pytest.mark.parametrize("guidance", [0.0, 1.5])
def test_clips_begin_with_the_picture_and_depend_on_path_and_seed_alone(again, guidance):
    torch.manual_seed(0)
    module = CamViG(**config(first_frame_again=again, decoding={"temperature": 1.0, "top_k": 8, "guidance": guidance}))
    module.eval()
    for parameter in module.network.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    one = batch()
    picture = one["video"][:, :, 0] / 255
    made = [module.generate(picture, one["path"], one["posed"], seed=seed) for seed in (0, 0, 1)]
    assert made[0].shape == (3, 3, 5, 16, 16) and torch.equal(made[0], made[1]) and not torch.equal(made[0], made[2])
    if not again:
        again_drawn = module.tokenizer.decode(module.tokenizer.encode(picture[:, :, None])).clamp(0, 1)
        torch.testing.assert_close(made[0][:, :, :1], again_drawn)
    other = module.generate(picture, -one["path"], one["posed"], seed=0)
    assert torch.equal(other[0], made[0][0]) or guidance  # its path is not shown
    assert not torch.equal(other[1:], made[0][1:])


def test_the_tokenizer_comes_first_and_the_language_model_later(module):
    other = CamViG(**config())
    tokenizer = {name: x for name, x in module.export().items() if name.startswith("tokenizer.")}
    kept = other.network.head.weight.clone()
    other.start_from(tokenizer | {"discriminator.x": torch.zeros(1)})
    assert torch.equal(other.tokenizer.encoder.head.weight, module.tokenizer.encoder.head.weight)
    assert torch.equal(other.network.head.weight, kept)
    other.start_from(module.export())
    assert torch.equal(other.network.head.weight, module.network.head.weight)


def test_the_surprise_of_guesses_is_that_of_all_codes():
    module = CamViG(**config()).eval()
    torch.nn.init.zeros_(module.network.head.weight)
    nll = module.surprise(batch())
    torch.testing.assert_close(nll, torch.full_like(nll, float(np.log(len(module.vocabulary)))))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"pictures": torch.zeros(3, 3, 8, 16)}, r"pictures are \(3, 3, 8, 16\), expected \(3, 3, 16, 16\)"),
        ({"path": torch.zeros(3, 5, 6)}, r"path are \(3, 5, 6\), expected \(3, 4, 6\)"),
        ({"path": torch.full((3, 4, 6), torch.nan)}, "a number of the path is not finite"),
    ],
)
def test_a_wrong_call_is_answered_in_one_line(module, changed, message):
    given = {"pictures": torch.zeros(3, 3, 16, 16), "path": torch.zeros(3, 4, 6), "shown": torch.ones(3).bool()}
    with pytest.raises(ValueError, match=message):
        module.generate(**given | changed)


class Stored(Run):
    facts = None

    def __init__(self, arrays, module):
        self.__dict__.update(arrays=arrays, seed=0, name="", facts=module.facts(), folder=None)

    def predictions(self):
        return self.arrays


def test_real_clips_are_measured_to_follow_their_paths_and_drawn_ones_are_not(module, folder):  # noqa: F811
    splits = {"val": {"source": "train", "rows": 24}, "test": {"source": "val", "rows": None}}
    arrays = {k: x.numpy() for k, x in module.predictions(data(folder, splits=splits), torch.device("cpu")).items()}
    assert len(arrays["labels"]) == 24 and arrays["made/shifts"].shape == arrays["asked/shifts"].shape == (24, 2, 4, 2)
    evaluated = evaluate([Stored(arrays, module)], "world_camera")
    found = {name.removeprefix("world_camera/"): value for name, value in evaluated.metrics[0].items()}
    assert found["real/correlation"] > 0.85 > found["correlation"]
    assert found["real/scene_motion"] == pytest.approx(1)
    posed = arrays["posed"]
    assert found["posed/nll"] == pytest.approx(arrays["nll"][posed].mean())
    assert found["broad/nll"] == pytest.approx(arrays["nll"][~posed].mean())
    assert found["real/rmse_px"] < found["rmse_px"]
    assert [figure.id for figure in evaluated.figures] == ["path-truck-right", "path-dolly-in", "path-pan-right"]
    assert evaluated.galleries[0].rows and not evaluated.not_computed


def test_agreement_and_parallax():
    asked = np.random.default_rng(0).normal(size=(6, 2, 4, 2))
    rows = np.arange(6) < 4
    assert agreement(asked, asked, rows) == pytest.approx({"correlation": 1, "rmse_px": 0})
    assert agreement(-asked, asked, rows)["correlation"] == pytest.approx(-1)
    assert agreement(0 * asked, asked, rows)["correlation"] == 0
    assert agreement(asked, asked, rows & False) == {}
    asked[:, :, -1] = [[1.0, 0.0], [3.0, 0.0]]
    assert further(asked, asked, rows) == pytest.approx(2)
    assert further(-asked, asked, rows) == pytest.approx(-2)


def test_motion_of_things_counts_in_clips_without_a_path_alone():
    arrays = {"asked/shifts": np.zeros((4, 2, 2, 2)), "labels": np.zeros(4, int), "posed": np.arange(4) < 2}
    arrays |= {f"{name}/shifts": np.zeros((4, 2, 2, 2)) for name in ("made", "real")}
    own = np.full((4, 2, 2), np.nan)
    own[2:] = [[1.0, 0.0], [0.0, 4.0]]
    arrays |= {"real/own": own, "made/own": own / 2}
    assert by_depths(arrays, "made")["scene_motion"] == pytest.approx(0.5)


def test_without_depths_it_says_what_is_not_computed(module):
    arrays = {"psnr": np.ones(3), "nll": np.ones(3), "posed": np.ones(3, bool), "labels": np.zeros(3, int)}
    for name in ("made", "again", "real"):
        arrays |= {f"{name}/turn_error": np.array([[1.0, np.nan]] * 3), f"{name}/direction_error": np.full((3, 2), 9.0)}
        arrays[f"shown/{name}"] = np.zeros((1, 5, 16, 16, 3), np.uint8)
    found = evaluate([Stored(arrays, module)], "x")
    assert found.metrics[0]["x/turn_error_deg"] == 1 and found.metrics[0]["x/measured_percent"] == 50
    assert set(found.not_computed) == {"rmse_px", "scene_motion"} and not found.figures


def test_data_without_paths_are_refused(module):
    class Clips(LightningDataModule):
        video_shape, num_classes = (3, 5, 16, 16), 0

    with pytest.raises(ValueError, match=r"whose clips have no paths: take camvig\.clips\.CameraClips"):
        module.check_data(Clips())
