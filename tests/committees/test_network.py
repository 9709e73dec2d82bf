import hashlib
import json
import math

import numpy as np
import pytest
import torch
from safetensors.torch import save
from torch import nn

from lightning_modules.committees import network as layer
from lightning_modules.committees.network import Committee
from lightning_modules.ensembling import cascades
from lightning_modules.ensembling.cascades import Cascade, StageTable, run_cascade
from lightning_modules.metrics.classification import log_softmax


class Counted(nn.Module):
    """A linear member that remembers how many rows it saw."""

    def __init__(self, seed, features=6, classes=4):
        super().__init__()
        self.linear = nn.Linear(features, classes)
        nn.init.normal_(self.linear.weight, generator=torch.Generator().manual_seed(seed))
        self.rows = []

    def forward(self, inputs):
        self.rows.append(len(inputs))
        return self.linear(inputs)


def members(count=3):
    return [Counted(seed) for seed in range(count)]


def write(committee, folder, **facts):
    """The two files of a committee, as `ensembling.committee_files` writes them."""
    weights = save({name: x.clone() for name, x in committee.state_dict().items()})
    record = {
        "member_macs": committee.macs,
        "thresholds": [t if math.isfinite(t) else str(t) for t in committee.thresholds],
        "weights_sha256": hashlib.sha256(weights).hexdigest(),
    }
    record |= {name: getattr(committee, name) for name in ("confidence", "average", "output", "temperatures")}
    (folder / "committee.json").write_text(json.dumps({**facts, **record, "weights": committee.weights}))
    (folder / "committee.safetensors").write_bytes(weights)


def inputs(rows=80):
    return torch.randn(rows, 6, generator=torch.Generator().manual_seed(9))


@torch.no_grad()
def offline(nets, x, thresholds, **choices):
    """The same committee by the search's own arithmetic, on the predictions of all members to all rows."""
    views = tuple((f"m{k}#0", "6") for k in range(len(nets)))
    temperatures = choices.pop("temperatures", [1.0] * len(nets))
    weights = choices.pop("weights", None)
    scores = {v: net(x).numpy() / np.float64(t) for v, net, t in zip(views, nets, temperatures, strict=True)}
    table = StageTable(
        scores,
        np.zeros(len(x), dtype=np.int64),
        weights=dict(zip(views, weights, strict=True)) if weights else None,
        **choices,
    )
    trace = run_cascade(table, Cascade(views, tuple(thresholds)), {v: 10 * 3**k for k, v in enumerate(views)})
    predictions = np.stack([log_softmax(table.output(views[: k + 1])) for k in range(len(views))])
    return np.exp(predictions[trace.exit_stage, np.arange(len(x))]), trace


@pytest.mark.parametrize("kind", cascades.CONFIDENCES)
@pytest.mark.parametrize("average", ["logits", "probabilities"])
@pytest.mark.parametrize("output", ["running", "last", "weighted"])
@torch.no_grad()
def test_it_sends_every_row_where_the_search_sends_it(kind, average, output):
    nets, x = members(), inputs()
    choices = {"confidence": kind, "average": average, "output": output, "temperatures": [0.7, 1.3, 1.0]}
    if output == "weighted":
        choices["weights"] = [1.0, 2.0, 0.5]
    first = StageTable({("m", "6"): nets[0](x).numpy()}, np.zeros(80, dtype=np.int64), confidence=kind)
    thresholds = [float(np.quantile(first.stage((("m", "6"),))[0], q)) for q in (0.5, 0.4)]

    found = Committee(nets, macs=[10, 30, 90], thresholds=thresholds, **choices)(x)
    predictions, trace = offline(nets, x, thresholds, **choices)

    np.testing.assert_array_equal(found.exit_stage.numpy(), trace.exit_stage)
    np.testing.assert_array_equal(found.macs.numpy(), trace.macs)
    np.testing.assert_array_equal(found.probabilities.argmax(-1).numpy(), predictions.argmax(-1))
    np.testing.assert_allclose(found.probabilities.numpy(), predictions, atol=1e-6)
    assert len(np.unique(trace.exit_stage)) > 1


@torch.no_grad()
def test_a_member_sees_the_unsure_rows_only_and_none_runs_when_none_is_left():
    nets, x = members(), inputs()
    output = Committee(nets, macs=[1, 1, 1], thresholds=[-0.2, -0.2])(x)
    for stage, net in enumerate(nets):
        assert net.rows[-1] == int((output.exit_stage >= stage).sum())
    nets = members()
    output = Committee(nets, macs=[5, 1, 1], thresholds=[-math.inf, 0.0])(x)
    assert nets[1].rows == [] and nets[2].rows == [] and (output.macs == 5).all()


@torch.no_grad()
def test_a_batch_equals_its_rows_one_by_one():
    committee, x = Committee(members(), macs=[1, 2, 4], thresholds=[-0.2, -0.1]), inputs(20)
    together = committee(x)
    alone = [committee(row[None]) for row in x]
    for name in ("exit_stage", "macs"):
        assert torch.equal(getattr(together, name), torch.cat([getattr(one, name) for one in alone]))
    torch.testing.assert_close(together.probabilities, torch.cat([one.probabilities for one in alone]))


@torch.no_grad()
def test_confidences_equal_the_search_s():
    scores = torch.randn(100, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 8
    for kind in cascades.CONFIDENCES:
        np.testing.assert_allclose(
            layer.confidence(scores, kind).numpy(), cascades.confidence(scores.numpy(), kind), rtol=1e-13
        )


@torch.no_grad()
def test_a_committee_that_is_read_back_gives_the_same_predictions(tmp_path):
    committee = Committee(
        members(),
        macs=[1, 2, 4],
        thresholds=[-0.2, math.inf],
        output="weighted",
        weights=[1.0, 2.0, 3.0],
        temperatures=[1.0, 2.0, 0.5],
    )
    write(committee, tmp_path)
    loaded = Committee.load(tmp_path, [Counted(seed + 50) for seed in range(3)])
    for ours, theirs in zip(committee(inputs()), loaded(inputs()), strict=True):
        assert torch.equal(ours, theirs)
    assert loaded.thresholds == (-0.2, math.inf)


def test_one_network_at_two_resolutions_is_passed_twice(tmp_path):
    net = members(1)[0]
    committee = Committee([nn.Sequential(nn.Identity(), net), net], macs=[1, 2], thresholds=[0.0])
    write(committee, tmp_path)
    other = Counted(5)
    loaded = Committee.load(tmp_path, [nn.Sequential(nn.Identity(), other), other])
    assert torch.equal(loaded(inputs()).probabilities, committee(inputs()).probabilities)


def test_files_that_do_not_belong_together_are_refused(tmp_path):
    committee = Committee(members(2), macs=[1, 2], thresholds=[0.0])
    write(committee, tmp_path)
    with pytest.raises(ValueError, match=r"another architecture: .*members\.0\.linear\.weight"):
        Committee.load(tmp_path, [Counted(0, features=7), Counted(1)])
    content = bytearray((tmp_path / "committee.safetensors").read_bytes())
    content[-1] ^= 1
    (tmp_path / "committee.safetensors").write_bytes(bytes(content))
    with pytest.raises(ValueError, match="come from different committees"):
        Committee.load(tmp_path, members(2))


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"thresholds": [0.0, 0.0]}, "2 members, 2 MACs and 2 thresholds do not fit"),
        ({"macs": [1]}, "2 members, 1 MACs and 1 thresholds do not fit"),
        ({"temperatures": [1.0]}, "temperatures has 1 entries for 2 members"),
        ({"output": "weighted", "weights": [1.0]}, "weights has 1 entries for 2 members"),
        ({"confidence": "margin"}, "confidence .'margin'."),
        ({"average": "vote"}, "average .'vote'."),
        ({"output": "first"}, "output .'first'."),
        ({"output": "weighted"}, "weights go with output 'weighted'"),
        ({"weights": [1.0, 1.0]}, "weights go with output 'weighted'"),
    ],
)
def test_what_does_not_fit_is_refused(changes, match):
    with pytest.raises(ValueError, match=match):
        Committee(members(2), **{"macs": [1, 2], "thresholds": [0.0], **changes})
