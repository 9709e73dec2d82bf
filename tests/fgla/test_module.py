"""FGLA's training and clips: sources of codes, switches, and what is remembered."""

from pathlib import Path

import pytest
import torch
from pytorch_lightning import LightningDataModule

from lightning_modules import settings
from lightning_modules.base import PaperModule
from lightning_modules.fgla import module as fgla
from lightning_modules.fgla.module import Fgla, edge_aware, kl_divergence, looks, neighbours
from lightning_modules.fgla.network import Code
from lightning_modules.fgla.warping import accumulate, animated, warp
from lightning_modules.metrics.claims import load_facts
from stages.composing import compose

FACTS = Path(fgla.__file__).with_name("facts.yaml")
SIZE, FRAMES = 16, 5


def config(**changes):
    model = compose("tiny", system="fgla")["system"]["model"]
    model |= {"size": SIZE, "frames": FRAMES, "codebook": 6}
    model["generator"]["reach"], model["encoder"]["code_dim"] = 0.125, 2
    for name, value in changes.items():
        model[name] = model[name] | value if isinstance(model[name], dict) and isinstance(value, dict) else value
    return {name: value for name, value in model.items() if name != "_target_"}


def make(**changes):
    torch.manual_seed(0)
    return Fgla(**config(**changes))


def batch(rows=3, frames=FRAMES):
    draw = torch.Generator().manual_seed(1)
    return {
        "video": torch.randint(0, 256, (rows, 3, frames, SIZE, SIZE), generator=draw, dtype=torch.uint8),
        "flow": torch.randn(rows, frames - 1, 2, SIZE, SIZE, generator=draw),
        "rows": torch.arange(rows), "starts": torch.zeros(rows, dtype=torch.long),
    }  # fmt: skip


@pytest.fixture
def module():
    return make()


def liven(module):
    """Layers that say nothing at first say something."""
    for part in (module.refinement, module.appearance):
        if part is not None:
            for parameter in part.parameters():
                torch.nn.init.normal_(parameter, std=0.1)
    return module


def test_sizes_of_the_paper_preset_and_of_animating_landscape():
    oracles = {oracle.name: oracle.model_extra for oracle in load_facts(FACTS).oracles}
    model = compose("paper", system="fgla")["system"]["model"] | {"flow_teacher": None, "perception": None}
    model.pop("_target_")
    model["weights"]["perceptual"] = 0.0
    with torch.device("meta"):
        assert Fgla(**model).facts()["code_numbers"] == oracles["embedding"]["numbers"]
        small = model["encoder"] | {"grid": 1, "code_dim": oracles["animating-landscape-code"]["numbers"]}
        theirs = Fgla(**model | {"encoder": small, "generator": model["generator"] | {"reach": 1 / 128}}).facts()
    assert theirs["code_numbers"] == 8
    # Theirs is in units of half a picture from centre to centre of its outermost pixels: 255 of 256 of ours.
    assert theirs["reach"] * 255 / 256 == oracles["animating-landscape-reach"]["pixels"]


def test_the_loss_is_that_of_the_warped_frame_the_flow_and_its_smoothness(module):
    given = batch()
    terms = module.terms(given)
    assert set(terms) == {"photometric", "flow", "smooth", "finished"}
    video = given["video"] / 255
    before, after = neighbours(video)
    _, motion = module.embed(video, given["flow"])
    made = module.generator(before, motion.flatten(0, 1))
    torch.testing.assert_close(terms["photometric"], (warp(before, made) - after).abs().mean())
    torch.testing.assert_close(terms["flow"], (made - given["flow"].flatten(0, 1)).abs().mean() / 2)
    torch.testing.assert_close(terms["smooth"], 0.1 * edge_aware(made / 2, after))
    total = accumulate(made.unflatten(0, (3, 4)))[:, -1]
    frame = module.refinement(warp(video[:, :, 0], total), total / 2)
    torch.testing.assert_close(terms["finished"], (frame - video[:, :, -1]).abs().mean())


def test_what_finishes_frames_teaches_no_flow(module):
    module.finished_terms(batch()["video"] / 255, batch()["flow"].requires_grad_())["finished"].backward()
    assert all(p.grad is None for part in (module.encoder, module.generator) for p in part.parameters())
    flow = batch()["flow"].requires_grad_()
    terms = module.terms(batch() | {"flow": flow})
    terms["finished"].backward()
    assert flow.grad is None and all(p.grad is None for p in module.generator.parameters())


def test_flows_may_jump_at_edges():
    flow = torch.zeros(1, 2, 4, 4)
    flow[..., 2:] = 1
    image = torch.zeros(1, 3, 4, 4)
    plain = edge_aware(flow, image)
    assert plain == pytest.approx(1 / 3)  # one of three columns of differences, along one axis
    image[..., 2:] = 0.1
    assert edge_aware(flow, image) == pytest.approx(plain.item() * torch.tensor(-3.0).exp().item())


def test_an_unsupervised_module_never_reads_the_flow():
    module = make(supervised=False, encoder={"sees": ["frames"]})
    given = batch()
    del given["flow"]
    assert set(module.terms(given)) == {"photometric", "smooth", "finished"}
    assert module.encode(given["video"] / 255).motion.shape == (3, 4, 2, 4, 4)


@pytest.mark.parametrize("sees", [["flow"], ["frames"], ["flow", "frames"]])
def test_the_encoder_sees_what_it_is_told_to(sees):
    module = make(encoder={"sees": sees})
    given = batch()
    video, flow = given["video"] / 255, given["flow"]
    one = module.encode(video, flow).motion
    assert torch.equal(one, module.encode(video, 2 * flow).motion) == ("flow" not in sees)
    assert torch.equal(one, module.encode(video.flip(0), flow).motion) == ("frames" not in sees)


def test_one_embedding_for_a_clip_is_the_mean_over_its_pairs():
    given = batch()
    each = make().encode(given["video"] / 255, given["flow"]).motion
    one = make(encoder={"span": "clip"}).encode(given["video"] / 255, given["flow"]).motion
    assert not torch.allclose(each[:, 0], each[:, 1])
    torch.testing.assert_close(one, each.mean(1, keepdim=True).expand_as(each))


def test_a_variational_embedding_is_drawn_in_training_alone_and_has_a_prior():
    module, given = make(encoder={"variational": True}), batch()
    assert "kl" in module.terms(given)
    video = given["video"] / 255
    assert not torch.equal(module.embed(video, given["flow"])[1], module.embed(video, given["flow"])[1])
    module.eval()
    assert torch.equal(module.embed(video, given["flow"])[1], module.embed(video, given["flow"])[1])
    drawing = torch.Generator().manual_seed(0)
    one, next_one, again = (module.prior(2, each) for each in (drawing, drawing, torch.Generator().manual_seed(0)))
    assert torch.equal(one.motion, again.motion) and not torch.equal(one.motion, next_one.motion)
    assert one.motion.shape == (2, 4, 2, 4, 4) and torch.equal(one.motion[:, 0], one.motion[:, 3])
    assert make(encoder={"variational": True}, appearance={"code_dim": 3}).prior(2, drawing).light is None
    with pytest.raises(ValueError, match=r"only of a variational encoder: set model\.encoder\.variational to true"):
        make().prior(2, drawing)


def test_the_divergence_of_a_gaussian():
    mean, logvar = torch.full((2, 3, 1, 1), 2.0), torch.zeros(2, 3, 1, 1)
    assert kl_divergence(Code(mean, logvar)) == pytest.approx(0.5 * 3 * 4)
    assert kl_divergence(Code(0 * mean, logvar)) == 0


def test_its_own_flow_is_remembered_for_the_next_time():
    """Animating Landscape's way: nothing is embedded at first, then the generator's last flow of the same frames."""
    module = make(encoder={"sees": ["own"], "grid": 1, "code_dim": 8}, supervised=False, remembered=8)
    given = batch(frames=3) | {"rows": torch.tensor([5, 0, 2]), "starts": torch.tensor([2, 0, 1])}
    module.terms(given)
    kept = module.own_flow.abs().sum((2, 3, 4)) > 0
    expected = torch.zeros(8, 4, dtype=torch.bool)
    expected[5, 2:], expected[0, :2], expected[2, 1:3] = True, True, True
    assert torch.equal(kept, expected)
    made = module.generator(
        neighbours(given["video"] / 255)[0], module.embed(given["video"] / 255, None)[1].flatten(0, 1)
    )
    torch.testing.assert_close(module.own_flow[5, 2], fgla.halved(made)[0], atol=1e-5, rtol=1e-4)
    assert "own_flow" not in module.export() and "own_flow" in module.state_dict()
    before = module.own_flow.clone()
    module.eval().terms(given)
    assert torch.equal(module.own_flow, before)


def test_clips_begin_with_the_picture_and_are_warped_once(module):
    module.eval()
    video = batch()["video"] / 255
    codes = module.encode(video, batch()["flow"])
    clip = module.animate(video[:, :, 0], codes)
    assert clip.shape == (3, 3, FRAMES, SIZE, SIZE) and torch.equal(clip[:, :, 0], video[:, :, 0])
    flows = module.moved(video[:, :, 0], codes)
    torch.testing.assert_close(flows[:, 0], module.generator(video[:, :, 0], codes.motion[:, 0]))
    frame = warp(video[:, :, 0], flows[:, 0])
    torch.testing.assert_close(flows[:, 1], module.generator(frame, codes.motion[:, 1]))
    torch.testing.assert_close(clip[:, :, 1:], animated(video[:, :, 0], flows).clamp(0, 1))  # nothing to repair yet
    assert not torch.allclose(clip, module.animate(video[:, :, 0], codes, by_frame=True))


def test_motion_is_recalled_from_the_training_clip_that_looks_most_alike():
    module = make(appearance={"code_dim": 3}).eval()
    pictures = torch.rand(4, 3, SIZE, SIZE)
    module.known[:3] = True
    module.known_looks[:4] = looks(pictures)
    module.known_motion.copy_(torch.randn(module.known_motion.shape))
    module.known_light.copy_(torch.randn(module.known_light.shape))
    codes = module.recall(pictures[[2, 0]] + 0.01)
    assert torch.equal(codes.motion, module.known_motion[[2, 0]]) and torch.equal(
        codes.light, module.known_light[[2, 0]]
    )
    assert not torch.equal(module.recall(pictures[3:]).motion, module.known_motion[3:4])  # it is not known


def test_the_codebook_is_filled_with_the_weights_that_are_exported():
    """`predictions` is called after the training, when averaged weights have taken the place of the last ones."""
    module = make(appearance={"code_dim": 3})

    class Data(LightningDataModule):
        def __init__(self):
            super().__init__()
            self.rows = {"train": (0, range(8)), "test": (1, range(4))}

        def evaluation_batches(self, split):
            yield batch(4)
            if split == "train":
                yield batch(4)

    module.predictions(Data(), torch.device("cpu"))
    assert module.known.all()
    video = batch(4)["video"] / 255
    torch.testing.assert_close(module.known_looks[4:], looks(video[:2, :, 0]))
    codes = module.eval().encode(video, batch(4)["flow"])
    torch.testing.assert_close(module.known_motion[:4], codes.motion)
    torch.testing.assert_close(module.known_light[4:], codes.light[:2])


def test_light_follows_its_code():
    module = liven(make(appearance={"code_dim": 3})).eval()
    video = batch()["video"] / 255
    codes = module.encode(video, batch()["flow"])
    assert codes.light.shape == (3, 4, 3)
    one, two = (
        module.animate(video[:, :, 0], codes),
        module.animate(video[:, :, 0], codes._replace(light=codes.light + 1)),
    )
    assert torch.equal(one[:, :, 0], two[:, :, 0]) and not torch.allclose(one[:, :, 1:], two[:, :, 1:])


def test_a_discriminator_learns_from_refined_frames_and_teaches_the_refinement_alone():
    module = liven(make(discriminator={"widths": [4, 4]}, weights={"adversarial": 0.01}))
    terms = module.terms(batch())
    assert {"adversarial", "discriminator"} <= set(terms)
    terms["adversarial"].backward(retain_graph=True)
    assert all(p.grad is None for part in (module.discriminator, module.generator) for p in part.parameters())
    assert all(p.grad is not None for p in module.refinement.parameters())
    module.zero_grad()
    terms["discriminator"].backward()
    assert all(p.grad is None for p in module.refinement.parameters())
    assert all(p.grad is not None for p in module.discriminator.parameters())


def test_perception_compares_warped_frames():
    module = make(perception="random", weights={"perceptual": 0.1})
    assert module.terms(batch())["perceptual"] > 0
    assert not any(name.startswith("perception") for name in module.export())


def test_where_no_flow_is_given_a_network_says_it(module):
    given = batch()
    expected = module.terms(given)
    module.flow_teacher = lambda video: given["flow"]
    found = module.terms({name: x for name, x in given.items() if name != "flow"})
    assert found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in found)


def test_validation_measures_the_flow_and_the_next_frame(module):
    module.eval()
    with torch.no_grad():
        found = module.validate(LightningDataModule(), [batch(2), batch(2)])
    assert set(found) == {"l1", "epe"} and found["epe"] > 0
    assert isinstance(module, PaperModule)


class Clips(LightningDataModule):
    video_shape, rows, daylight = (3, FRAMES, SIZE, SIZE), {"train": ("train", range(9))}, False


class Decoded(LightningDataModule):
    video_shape, rows = (3, FRAMES, SIZE, SIZE), {}


class Long(Clips):
    video_shape = (3, 6, SIZE, SIZE)


class Short(Clips):
    video_shape = (3, 4, SIZE, SIZE)


@pytest.mark.parametrize(
    ("data", "changed", "message"),
    [
        (Short, {}, r"clips of shape \(3, 4, 16, 16\) .* model\.size is 16 and model\.frames 5"),
        (Decoded, {}, r"clips of Decoded come without their flow, and model\.flow_teacher is null"),
        (
            Clips,
            {"encoder": {"sees": ["own"]}, "remembered": 8},
            r"model\.remembered is 8 .* there are 9 clips of 5 fr",
        ),
        (Long, {"encoder": {"sees": ["own"]}, "remembered": 9}, r"model\.frames 5, but there are 9 clips of 6 frames"),
        (Clips, {"encoder": {"sees": ["own"]}, "remembered": 9}, r"Clips does not say which frames of which clip"),
    ],
)
def test_data_that_do_not_fit_are_refused(data, changed, message):
    module = make(**changed)
    with pytest.raises(ValueError, match=message):
        module.check_data(data())
    make(supervised=False, encoder={"sees": ["frames"]}).check_data(Clips())


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"frames": 1}, r"frames is 1, expected at least 2"),
        ({"discriminator": {"widths": [4]}, "refinement": None}, r"model\.discriminator judges refined frames"),
        ({"remembered": 4}, r"model\.encoder\.sees is \['flow', 'frames'\] and model\.remembered is 4"),
        ({"encoder": {"sees": ["own"]}}, r"model\.encoder\.sees is \['own'\] and model\.remembered is 0"),
        ({"size": 18}, r"size is 18, expected a multiple of 4"),
        ({"discriminator": {"widths": 5 * [4]}}, r"discriminator\.widths has 5 stages, each of which halves 16 pixels"),
        ({"generator": {"widths": []}}, r"generator\.widths has 0 stages"),
        ({"size": 20, "encoder": {"grid": 5}}, r"generator\.widths has 3 stages, .* but pictures have 20 pixels"),
        ({"weights": {"perceptual": 0.1}}, r"weights\.perceptual is 0\.1, but perception is null"),
        ({"weights": {"adversarial": 0.1}}, r"weights\.adversarial is 0\.1, but discriminator is null"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(changed, message):
    with pytest.raises(ValueError, match=message):
        make(**changed)


def test_flows_are_remembered_in_one_process_alone():
    module = make(encoder={"sees": ["own"]}, remembered=8)
    module._trainer = type("Trainer", (), {"world_size": 2})()
    with pytest.raises(ValueError, match=r"sees is \['own'\] and 2 processes train: .* Train in one process"):
        module.on_fit_start()


def test_without_a_flow_and_a_network_for_it_nothing_can_be_embedded(module):
    with pytest.raises(ValueError, match=r"the clips come without their flow, and model\.flow_teacher is null"):
        module.encode(batch()["video"] / 255)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"generator": {"reach": 0.0}}, "generator: reach is"),
        ({"generator": {"widths": []}}, "generator: widths is"),
        ({"encoder": {"widths": []}}, "encoder: widths is"),
        ({"encoder": {"sees": []}}, "encoder: sees is"),
        ({"published": {"i3dx": None}}, "i3dx"),
        ({"published": {"lpips": "yes"}}, "published: lpips is"),
    ],
)
def test_nested_settings_are_held_against_their_form(changed, message):
    model = compose("tiny", system="fgla")["system"]["model"]
    for name, values in changed.items():
        model[name] = dict(model[name]) | values
    with pytest.raises(ValueError, match=message) as raised:
        settings.bind(model, "here")
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("named", "message"),
    [
        ({"i3d": "nowhere.pt"}, r"model\.published\.i3d is nowhere\.pt, which is no file"),
        ({"c3d": __file__}, r"c3d_mean is None: C3D needs both files"),
    ],
)
def test_weights_of_published_measures_are_looked_for_before_training(named, message):
    given = {"i3d": None, "c3d": None, "c3d_mean": None, "lpips": False} | named
    with pytest.raises(ValueError, match=message):
        make(published=given).check_data(LightningDataModule())
