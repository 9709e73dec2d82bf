"""Stylisation (section 3.1): what is given of a clip is how things move in it and how near they are."""

from functools import partial

import numpy as np
import pytest
import torch
from torch import nn
from transformers import DPTConfig, DPTForDepthEstimation

from lightning_modules import rehearsal
from lightning_modules.datasets.video.drawn import encode
from lightning_modules.fgla.raft import Raft
from lightning_modules.metrics.compute import count_parameters
from lightning_modules.settings import bind
from lightning_modules.videopoet.guides import Depth, Guides
from lightning_modules.videopoet.module import VideoPoet
from lightning_modules.videopoet.predictor import Director
from lightning_modules.videopoet.prompts import Asked, read_asked
from stages.composing import compose
from tests.videopoet.test_director import clips, settings

SMALL = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 4, "num_attention_heads": 2, "image_size": 32,
         "backbone_out_indices": [0, 1, 2, 3], "neck_hidden_sizes": [8, 8, 8, 8], "fusion_hidden_size": 8,
         "patch_size": 8}  # fmt: skip


class Fixed(nn.Module):
    """Flows that do not depend on the clip."""

    def __init__(self, flows):
        super().__init__()
        self.flows = flows

    def forward(self, video):
        return self.flows


@pytest.fixture(scope="module")
def networks(tmp_path_factory):
    """Settings of guides whose networks have small files of their own."""
    folder = tmp_path_factory.mktemp("networks")
    torch.manual_seed(0)
    DPTForDepthEstimation(DPTConfig(**SMALL)).save_pretrained(folder / "dpt")
    torch.save(Raft("small").state_dict(), folder / "raft.pth")
    flow = {"_target_": "lightning_modules.fgla.raft.FlowTeacher", "network": "small", "updates": 1}
    return {"flow": flow | {"weights": str(folder / "raft.pth")}, "depth": str(folder / "dpt"), "reach": 0.25}


@pytest.fixture(scope="module")
def module(networks):
    torch.manual_seed(0)
    built = VideoPoet(**settings(["t2v", "stylise"]), guides=networks)
    with torch.no_grad():
        for parameter in built.network.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return built.eval()


def test_flows_and_depth_become_pixels(networks):
    """A flow of 0 is grey, one as long as the reach is the end of the range; the last frame's is that before it."""
    guides, video = Guides(**networks), torch.rand(1, 3, 3, 8, 16)
    flows = torch.zeros(1, 2, 2, 8, 16)
    flows[:, 0, 0], flows[:, 1, 0], flows[:, 1, 1] = 2.0, -9.0, 1.0  # 1/8 and more than 1/4 of the width, 1/8 downwards
    guides.flow = Fixed(flows)
    found = guides(video)
    assert found.shape == video.shape
    right, down, _ = found[0].amin((2, 3))
    assert right.tolist() == [0.75, 0.0, 0.0] and down.tolist() == [0.5, 0.75, 0.75]
    assert float(found[:, 2].min()) == 0 and float(found[:, 2].max()) == pytest.approx(1)


def test_depth_is_that_of_the_network_in_its_own_size(networks):
    depth, video = Depth(networks["depth"]), torch.rand(2, 3, 2, 8, 12)
    found = depth(video)
    assert found.shape == (2, 2, 8, 12) and found.flatten(1).amin(1).tolist() == [0, 0]
    frames = 2 * video[0].transpose(0, 1) - 1
    resized = partial(nn.functional.interpolate, mode="bicubic", align_corners=False)
    own = depth.network(pixel_values=resized(frames, (32, 32))).predicted_depth
    own = resized(own[:, None], (8, 12))[:, 0]
    torch.testing.assert_close(found[0], (own - own.min()) / (own.max() - own.min()), rtol=1e-3, atol=1e-3)
    with torch.no_grad():
        depth.network.head.head[-2].weight.zero_()
        depth.network.head.head[-2].bias.zero_()
    assert not depth(video).any()  # all equally far


def test_the_networks_are_never_trained_nor_stored(module):
    assert not [name for name in module.state_dict() if name.startswith("guides")]
    assert not [name for name, _ in module.named_parameters() if name.startswith("guides")]
    assert module.guides.flow.network.training is False


def test_stylisation_is_given_text_motion_and_depth_and_writes_a_whole_clip(module):
    layout = module.layouts["stylise"]
    assert layout.names(given=True) == ["text", "visual"] and layout.names()[2:] == ["video"]
    assert layout.span("visual").stop - layout.span("visual").start == module.visual_places
    video = torch.rand(2, 3, 9, 8, 8, generator=torch.Generator().manual_seed(0)) * 255
    batch = clips(video=video)
    given = module.sequences("stylise", batch)
    expected = module.encoded(module.guides(video / 255))
    assert torch.equal(module.words.visual_tokens(given.ids[:, layout.span("visual")]), expected)
    assert torch.equal(module.words.visual_tokens(given.ids[:, layout.span("video")]), module.encoded(video / 255))
    made = module.generate("stylise", batch)["video"]
    assert made.shape == (2, 3, 9, 8, 8)
    module.train()
    module.network.loss(module.sequences("stylise", batch)).backward()
    module.eval()
    assert module.network.head.weight.grad is not None


def test_a_text_file_names_the_video_whose_motion_is_followed(module, tmp_path):
    encode(tmp_path / "mine.mp4", 20)
    (tmp_path / "mine.txt").write_text("like: mine.mp4\na red circle moving left\nlike:\na red circle moving left\n")
    told = "a red circle moving left"
    assert read_asked(tmp_path / "mine.txt") == [Asked(told, like=tmp_path / "mine.mp4"), Asked(told)]
    followed, plain = Director(module).answer(tmp_path / "mine.txt")
    assert (followed["task"], plain["task"]) == (
        "a video of the text, with the motion of mine.mp4",
        "a video of the text",
    )
    assert followed["film"].frames.shape == (9, 8, 8, 3)
    assert not np.array_equal(followed["film"].frames, plain["film"].frames)
    (tmp_path / "mine.txt").write_text("like: other.mp4\na red circle moving left\n")
    with pytest.raises(ValueError, match=r"other\.mp4"):
        list(Director(module).answer(tmp_path / "mine.txt"))


def test_an_arm_without_stylisation_says_so(tmp_path):
    (tmp_path / "mine.txt").write_text("like: mine.mp4\na red circle moving left\n")
    with pytest.raises(
        ValueError, match=r"has learnt t2v, and not stylise, .*take an arm that has, or leave out 'like:'"
    ):
        list(Director(VideoPoet(**settings(["t2v"]))).answer(tmp_path / "mine.txt"))


def test_a_rehearsal_draws_a_narrow_network(monkeypatch):
    monkeypatch.setattr(rehearsal, "current", rehearsal.Rehearsal(rows=2, narrow=16))
    depth = Depth("Intel/dpt-large")
    assert depth.network.config.hidden_size == 64 and depth(torch.rand(1, 3, 2, 8, 8)).shape == (1, 2, 8, 8)
    assert rehearsal.current.replaced == {"Intel/dpt-large"}


def test_the_published_depth_network_has_its_size():
    """DPT-Large (Ranftl et al., 2103.13413) has 343 million parameters by its authors' table."""
    with torch.device("meta"):
        network = Depth("Intel/dpt-large").network
    assert round(sum(p.numel() for p in network.parameters()) / 1e6) in (342, 343, 344)


def test_the_arm_of_the_paper_preset_has_the_sequences_of_its_sizes():
    """66 places of text, 1,282 of flow and depth, 1,282 of the clip, each with its delimiters; <bos>, task, <eos>."""
    block = compose("paper", system="videopoet")["system"]["model"] | {
        "tasks": ["stylise"],
        "judged_tasks": ["stylise"],
    }
    block["tokenizer"] |= {"width": 2, "norm_groups": 2}
    with torch.device("meta"):
        built = bind(block, "conf/system/videopoet/paper.yaml: model")()
    assert built.layouts["stylise"].length == 66 + 2 * 1282 + 3
    assert built.facts()["lengths"] == {"stylise": 66 + 2 * 1282 + 3}
    assert (
        count_parameters(built.guides.flow.network) == 5_257_536
        and built.guides.depth.network.config.hidden_size == 1024
    )
