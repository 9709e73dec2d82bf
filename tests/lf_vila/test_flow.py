"""Inter-modality flow of stage two and its heads: paragraph token, words, padding, and tokens of the video."""

import numpy as np
import pytest
import torch

from lightning_modules.datasets.tokenizers import world_tokenizer
from lightning_modules.lf_vila.evaluation import evaluate
from stages.composing import compose
from tests.lf_vila.test_module import build
from tests.memory_runs import run_of

SEEN = 8  # tokens of 8 frames, one of each
PARAGRAPHS = [["a red circle", "a circle", "", ""], ["a circle", "a red circle", "a blue square", "a square"]]


@pytest.fixture(scope="module")
def tiny() -> dict:
    return compose("tiny", system="lf_vila")["system"]


def batch(paragraphs=PARAGRAPHS) -> dict[str, torch.Tensor]:
    ids, mask = world_tokenizer()([sentence for each in paragraphs for sentence in each], 6)
    ids, mask = (torch.from_numpy(x).unflatten(0, (len(paragraphs), -1)) for x in (ids, mask))
    missing = ~torch.tensor([[bool(sentence) for sentence in each] for each in paragraphs])[:, :, None]
    ids, mask = ids.masked_fill(missing, 0), mask & ~missing
    video = torch.randint(0, 256, (len(paragraphs), 3, 8, 24, 24), dtype=torch.uint8)
    return {"video": video, "token_ids": ids, "attention_mask": mask, "labels": torch.zeros(len(ids), dtype=torch.long)}


def flows(module, given) -> dict[str, torch.Tensor]:
    with torch.no_grad():
        return module.eval().flows(given, world_tokenizer())


def third(module):
    layers = module.network.text_encoder.bert.encoder.layer[module.network.together :]
    return [layer.attention.self for layer in layers]


@pytest.mark.parametrize("options", [{"task": "fuse"}, {"task": "answer", "answers": 3}])
def test_equal_attention_has_a_flow_of_one(tiny, options):
    module, given = build(tiny, **options), batch()
    for attention in third(module):
        for part in (attention.query, attention.key):
            torch.nn.init.zeros_(part.weight)
    found = flows(module, given)
    assert all((x - 1).abs().max() < 1e-5 for name, x in found.items() if name.endswith(("relative", "rolled_out")))
    words = torch.tensor([[5], [10]])  # "a red circle", "a circle"; and so on
    outer = torch.tensor([[1 + 4], [1 + 8]])  # the token of the paragraph; start and end of each sentence
    for name, counted in (("own", words + outer), ("other", words + outer), ("content", words)):
        everything = SEEN + words + outer
        torch.testing.assert_close(found[f"flow/{name}/to_language"], SEEN / everything)
        torch.testing.assert_close(found[f"flow/{name}/to_vision"], counted / everything)


def test_attention_to_the_video_alone_is_read_by_words_alone(tiny):
    """Tokens of the video are marked, so that it shows where they begin."""
    module = build(tiny, task="fuse")
    marked, attention = module.network.video_token_pos.norm, third(module)[0]
    for part in (marked.weight, attention.query.weight, attention.key.weight):
        torch.nn.init.zeros_(part)
    with torch.no_grad():
        marked.bias[0] = 100.0
        attention.query.bias.fill_(1.0)
        attention.key.weight[:, 0] = 1.0
    found = flows(module, batch())
    assert found["flow/own/to_language"][:, 0].tolist() == pytest.approx([1, 1], abs=1e-5)
    assert found["flow/own/to_vision"][:, 0].tolist() == pytest.approx([0, 0], abs=1e-5)


def test_of_choices_the_right_one_is_read(tiny):
    given, module = batch(), build(tiny, task="choose")
    for name in ("token_ids", "attention_mask"):
        given[name] = torch.stack([given[name], given[name].flip(0)], 1)
    own = flows(module, given)
    for name in ("token_ids", "attention_mask"):
        given[name][:, 1] = given[name][:, 0]
    torch.testing.assert_close(flows(module, given), own)


def test_paragraphs_without_words_are_left_out(tiny):
    module = build(tiny, task="fuse")
    assert len(flows(module, batch([*PARAGRAPHS, [""] * 4]))["flow/content/relative"]) == 2
    assert flows(module, batch([[""] * 4])) == {}


def test_flow_is_reported(tiny):
    module = build(tiny, task="fuse")
    arrays = {f"{name}/test": x.numpy() for name, x in flows(module, batch()).items()}
    own = arrays["flow/own/relative/test"].astype(np.float64).mean()
    arrays |= {f"{name}/test": np.ones(2, np.float32) for name in ("own", "other")}
    facts = {"task": "fuse", "attention_elements": {"8": 1}, "macs_per_video": 1, "parameters": 1}
    found = evaluate([run_of(arrays, facts)], "world")
    assert found.metrics[0]["world/flow/own_points"] == pytest.approx(100 * own)
    assert [figure.id for figure in found.figures] == ["flow", "attention"]


def test_of_a_comparison_the_papers_own_arm_is_drawn():
    arrays = {f"{name}/test": np.ones(2, np.float32) for name in ("own", "other")}
    facts = {"task": "fuse", "macs_per_video": 1, "parameters": 1}
    names = {"lf_vila-full/match": 9000, "lf_vila/match": 1000}  # in the order of `find_runs`
    runs = [run_of(arrays, facts | {"attention_elements": {"8": n}}, name=name) for name, n in names.items()]
    (figure,) = evaluate(runs, "world").figures
    assert figure.id == "attention" and figure.series[0].y == [1.0]
