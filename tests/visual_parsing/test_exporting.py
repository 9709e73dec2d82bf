"""The exported parser is a Swin Transformer that computes the same."""

import pytest
import torch
from transformers import SwinModel

from lightning_modules.visual_parsing.exporting import exported
from tests.visual_parsing import small

STATISTICS = [0.3] * 3, [0.3] * 3


@torch.no_grad()
@pytest.mark.parametrize("windows", ["one", "several"])
def test_an_exported_parser_gives_the_tokens_and_the_attention_of_ours(tmp_path, windows):
    swin = small.VISUAL["swin"]
    sizes = swin["sizes"] if windows == "one" else {**swin["sizes"], "window_size": 2}
    module = small.module(visual={**small.VISUAL, "windows": windows, "swin": {**swin, "sizes": sizes}}).eval()
    found = exported(module.network.visual, module.preprocess.statistics)
    found.model.save_pretrained(tmp_path)
    loaded = SwinModel.from_pretrained(tmp_path, attn_implementation="eager", **found.options).eval()
    pixels = module.preprocess(small.batch()["images"])
    out, parsed = loaded(pixels, output_attentions=True), module.network.parse(pixels)
    torch.testing.assert_close(out.last_hidden_state, parsed.features)
    if windows == "one":
        torch.testing.assert_close(out.attentions[-1].mean(1), parsed.weights)
    assert found.statistics == (tuple(STATISTICS[0]), tuple(STATISTICS[1]))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kind": "cnn"}, "is a ResNet"),
        ({"pool": True}, "tokens are pooled"),
        ({"windows": "several"}, "keep their aspect ratio"),
    ],
)
def test_what_no_class_of_transformers_computes_is_refused(changes, message):
    masking = {"how": "random", "pivots": 1, "neighbours": 3}
    module = small.module(visual={**small.VISUAL, **changes}, visual_masking=masking)
    with pytest.raises(ValueError, match=message):
        exported(module.network.visual, STATISTICS)
