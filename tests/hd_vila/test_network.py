"""The networks compute what the official code computes, and what the paper says of them holds."""

import pytest
import torch

from lightning_modules.hd_vila.network import HdVilaNetwork, ResNet, TimeSformer
from lightning_modules.layers.bert import make_bert, masked_word_loss
from lightning_modules.losses.contrastive import gather, info_nce
from tests.hd_vila.reference import FACTS, GRADIENTS, SIZES, built, inputs


def near(found, expected):
    found, expected = torch.as_tensor(found).detach().flatten(), torch.as_tensor(expected)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5 * expected.abs().max().item())


def read(network, given):
    """Maps (videos clips dim h w) and states of texts."""
    middle = None if network.streams == "low" else given["middle"]
    maps = network.encode_clips(middle, None if network.streams == "high" else given["others"])
    return maps.unflatten(0, (2, 2)), network.read_texts(given["token_ids"], given["mask"])


@pytest.mark.parametrize("streams", ["hybrid", "high", "low"])
def test_features_are_those_of_the_official_code(streams):
    network, given = built(streams=streams), inputs()
    with torch.no_grad():
        maps, states = read(network, given)
        near(maps[0, 0, :3, 0, :2], FACTS[streams]["map"])
        near(network.video_features(maps)[:, :3], FACTS[streams]["video"])
        near(network.text_features(states, given["mask"])[:, :3], FACTS["text"])


def gradients(network, task):
    named = dict(network.named_parameters())
    return [named[name].grad.double().norm() for name in GRADIENTS[task]]


def test_losses_and_gradients_of_stage_one_are_those_of_the_official_code():
    network, given = built(), inputs()
    maps, states = read(network, given)
    features = network.text_features(states, given["mask"]), network.video_features(maps)
    near(info_nce(*features, torch.tensor(1 / 0.08)), [FACTS["retrieval"]])
    loss = info_nce(*features, torch.tensor(1 / 0.05)) / 2
    near(loss, [FACTS["contrast"]])
    loss.backward()
    near(torch.stack(gradients(network, "contrast")), torch.tensor(list(GRADIENTS["contrast"].values())).double())
    assert not [name for name, x in network.named_parameters() if x.grad is None]


@pytest.mark.parametrize("pool", ["lse", "mean", "max"])
def test_loss_of_masked_words_is_that_of_the_official_code(pool):
    network, given = built("words", pool=pool), inputs()
    maps, states = read(network, given)
    pooled = network.over_clips(network.fuse(states, given["mask"], maps))
    loss = masked_word_loss(network.word_logits(pooled.flatten(0, 1)), given["labels"].flatten())
    near(loss, [FACTS["words"][pool]])
    if pool == "lse":
        loss.backward()
        near(torch.stack(gradients(network, "words")), torch.tensor(list(GRADIENTS["words"].values())).double())


@pytest.mark.parametrize("task", ["answers", "choice"])
def test_answers_are_those_of_the_official_code(task):
    network, given = built(task, num_answers=5), inputs()
    with torch.no_grad():
        maps, states = read(network, given)
        if task == "choice":  # two candidates for one video
            maps = maps[:1].expand(2, -1, -1, -1, -1)
        near(network.answer_logits(network.fuse(states, given["mask"], maps)), FACTS[task])


def test_at_first_neighbours_have_no_say_and_later_they_have():
    torch.manual_seed(0)
    given, resnet = inputs(), {"width": 8, "norm": "group"}
    network = HdVilaNetwork(make_bert(sizes=SIZES), resnet=resnet, timesformer={"depth": 2, "heads": 4}).eval()
    with torch.no_grad():
        first, reverse = (network.encode_clips(given["middle"], x) for x in (given["others"], given["others"].flip(1)))
        assert torch.equal(first, reverse)
        network.timesformer.blocks[0].temporal_fc.weight.normal_()
        network.timesformer.time_embed.normal_()
        first, reverse = (network.encode_clips(given["middle"], x) for x in (given["others"], given["others"].flip(1)))
    assert not torch.allclose(first, reverse, atol=1e-3)


def test_both_streams_give_maps_of_one_grid_and_other_sizes_are_refused():
    with torch.device("meta"):
        network = HdVilaNetwork(make_bert(sizes=SIZES), resnet={"width": 8}, timesformer={"heads": 4})
        for height, width in ((640, 1024), (320, 512), (768, 768)):
            middle, others = torch.empty(1, 3, height, width), torch.empty(1, 6, 3, height // 4, width // 4)
            assert network.encode_clips(middle, others).shape == (1, 32, height // 64, width // 64)
        with pytest.raises(ValueError, match=r"frames of \(40, 64\) .* multiples of 16 do"):
            network.encode_clips(torch.empty(1, 3, 160, 256), torch.empty(1, 6, 3, 40, 64))


def test_positions_are_stretched_to_other_grids_and_lengths():
    former = TimeSformer(8, depth=1, heads=2, grid=(2, 4), frames=3, time_std=1.0)
    assert former(torch.randn(2, 5, 8, 4, 4)).shape == (2, 5, 8, 4, 4)


def test_frozen_statistics_stay_in_training():
    frozen = ResNet(width=4, layers=(1, 1)).train()
    before = frozen.bn1.running_mean.clone()
    frozen(torch.randn(2, 3, 32, 32) + 3)
    assert frozen.training and torch.equal(frozen.bn1.running_mean, before)


@pytest.mark.parametrize("option", [{"streams": "both"}, {"task": "words?"}, {"pool": "median"}])
def test_an_unknown_option_is_named(option):
    with torch.device("meta"), pytest.raises(ValueError, match=r"must be one of"):
        HdVilaNetwork(make_bert(sizes=SIZES), resnet={}, timesformer={}, **option)


def test_an_odd_number_of_layers_has_no_halves():
    with torch.device("meta"), pytest.raises(ValueError, match="bert has 3 layers, which are no two halves"):
        HdVilaNetwork(make_bert(sizes={**SIZES, "num_hidden_layers": 3}), resnet={}, timesformer={})


def test_in_a_validation_no_process_reads_the_rows_of_others(monkeypatch):
    """Each has all of them: gathered, every row would be there several times, and the loss would be another one."""
    monkeypatch.setattr("torch.distributed.is_initialized", lambda: True)
    monkeypatch.setattr("torch.distributed.get_world_size", lambda: 2)
    monkeypatch.setattr("lightning_modules.losses.contrastive._Gather.apply", lambda x: torch.cat([x, x]))
    rows = torch.randn(3, 4)
    with torch.no_grad():
        assert gather(rows) is rows
    assert len(gather(rows)) == 6
