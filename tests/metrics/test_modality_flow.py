"""Inter-modality flow: closed forms, and the same numbers with and without attention maps."""

import pytest
import torch
from torch import Tensor, nn

from lightning_modules.metrics.memory import peak_bytes
from lightning_modules.metrics.modality_flow import FlowMeter, baseline, flows, projected, side_by_side, watching

LANGUAGE, VISION = 20, 49


def masks(language: int = LANGUAGE, vision: int = VISION, batch: int = 2) -> tuple[Tensor, Tensor]:
    said = torch.zeros(batch, language + vision, dtype=torch.bool)
    said[:, :language] = True
    return said, ~said


def uniform(positions: int, batch: int = 2) -> Tensor:
    return torch.full((batch, positions, positions), 1 / positions)


@pytest.mark.parametrize(("vision", "expected"), [(49, 0.4117), (240, 0.1420), (300, 0.1172)])
def test_equal_attention_is_the_baseline(vision, expected):
    flow = flows([uniform(LANGUAGE + vision)], *masks(vision=vision)).layers[0]
    assert baseline(LANGUAGE, vision) == pytest.approx(expected, abs=5e-5)
    assert flow.symmetric.tolist() == pytest.approx([baseline(LANGUAGE, vision)] * 2, rel=1e-5)
    assert flow.relative.tolist() == pytest.approx([1, 1], rel=1e-5)


def test_tokens_that_attend_to_themselves_alone_let_nothing_flow():
    meter = flows([torch.eye(69).expand(2, -1, -1)], *masks())
    assert not meter.layers[0].symmetric.any()
    assert not meter.rolled_out.symmetric.any()


def test_swapped_attention_flows_wholly():
    language, vision = masks()
    swapped = torch.zeros(2, 69, 69)
    swapped[:, :LANGUAGE, LANGUAGE:] = 1 / VISION
    swapped[:, LANGUAGE:, :LANGUAGE] = 1 / LANGUAGE
    flow = flows([swapped], language, vision).layers[0]
    for numbers in (flow.to_language, flow.to_vision, flow.symmetric):
        assert numbers.tolist() == pytest.approx([1, 1], rel=1e-5)


def test_directions_add_up_to_the_symmetric_flow():
    attention = torch.rand(2, 4, 69, 69, generator=torch.Generator().manual_seed(0)).softmax(-1)
    flow = flows([attention], *masks()).layers[0]
    torch.testing.assert_close(LANGUAGE * flow.to_language + VISION * flow.to_vision, 69 * flow.symmetric)


def test_rolled_out_is_the_product_over_layers():
    draw = torch.Generator().manual_seed(0)
    maps = [torch.randn(2, 4, 69, 69, generator=draw).softmax(-1) for _ in range(3)]
    language, vision = masks()
    product = torch.eye(69)
    for attention in maps:
        product = (attention.mean(1) + torch.eye(69)) / 2 @ product
    crossed = product[:, :LANGUAGE, LANGUAGE:].sum((1, 2)) + product[:, LANGUAGE:, :LANGUAGE].sum((1, 2))
    torch.testing.assert_close(flows(maps, language, vision).rolled_out.symmetric, crossed / 69)


def test_equal_attention_rolled_out_is_its_baseline():
    meter = flows([uniform(69)] * 3, *masks())
    assert meter.rolled_out.relative.tolist() == pytest.approx([1, 1], rel=1e-5)


def test_padding_changes_nothing():
    draw = torch.Generator().manual_seed(0)
    scores, (language, vision) = torch.randn(2, 4, 69, 69, generator=draw), masks()
    whole = flows([scores.softmax(-1)] * 2, language, vision)
    wide = torch.randn(2, 4, 75, 75, generator=draw)
    wide[..., :69, :69] = scores
    wide[..., 69:] = -torch.inf
    nothing = torch.zeros(2, 6, dtype=torch.bool)
    padded = flows([wide.softmax(-1)] * 2, torch.cat([language, nothing], 1), torch.cat([vision, nothing], 1))
    torch.testing.assert_close(padded.layers[1], whole.layers[1])
    torch.testing.assert_close(padded.rolled_out, whole.rolled_out)


def test_special_tokens_can_be_left_out():
    language, vision = masks()
    language[:, 0] = False
    flow = flows([uniform(69)], language, vision, torch.ones(2, 69, dtype=torch.bool)).layers[0]
    assert flow.symmetric.tolist() == pytest.approx([2 * 19 * 49 / (68 * 69)] * 2, rel=1e-5)
    assert flow.relative.tolist() == pytest.approx([1, 1], rel=1e-5)


@pytest.mark.parametrize("padding", [0, 5])
def test_products_are_counted_as_maps_are(padding):
    draw = torch.Generator().manual_seed(0)
    query, key = torch.randn(2, 2, 4, 69, 8, generator=draw)
    language, vision = masks()
    vision[:, 69 - padding :] = False
    attended = language | vision
    scores = (query @ key.mT / 8**0.5).masked_fill(~attended[:, None, None], -torch.inf)
    by_products = FlowMeter(language, vision)
    for _ in range(2):
        by_products.update_products(query, key)
    by_maps = flows([scores.softmax(-1)] * 2, language, vision)
    torch.testing.assert_close(by_products.layers, by_maps.layers)
    torch.testing.assert_close(by_products.rolled_out, by_maps.rolled_out)


def bert(attention: str) -> nn.Module:
    from transformers import BertConfig, BertModel

    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=50, hidden_size=32, num_hidden_layers=3, num_attention_heads=4, intermediate_size=64,
        attn_implementation=attention,
    )  # fmt: skip
    return BertModel(config, add_pooling_layer=False).eval()


def test_hooks_read_bert_with_and_without_its_maps():
    ids, (language, vision) = torch.randint(50, (2, 69)), masks()
    vision[1, 60:] = False
    found = []
    for attention, read in (("eager", None), ("sdpa", projected), ("eager", projected)):
        model, meter = bert(attention), FlowMeter(language, vision)
        with watching([layer.attention.self for layer in model.encoder.layer], meter, read), torch.no_grad():
            model(input_ids=ids, attention_mask=(language | vision).long())
        with torch.no_grad():
            model(input_ids=ids)  # no longer watched
        assert len(meter.layers) == 3
        found.append(meter)
    for other in found[1:]:
        torch.testing.assert_close(other.layers, found[0].layers)
        torch.testing.assert_close(other.rolled_out, found[0].rolled_out)


def test_hooks_keep_no_maps():
    """Twelve layers take no more memory than two."""

    def peak(layers: int) -> int:
        said, seen = masks(64, 64)
        query = torch.zeros(2, 4, 128, 8)
        return peak_bytes(lambda: flows(((query @ query.mT).softmax(-1) for _ in range(layers)), said, seen))

    assert peak(12) < 1.1 * peak(2)


def test_fused_attention_is_refused_with_the_way_out():
    model, meter = bert("sdpa"), FlowMeter(*masks())
    with (
        pytest.raises(ValueError, match=r"gives NoneType as attention.*eager"),
        watching([layer.attention.self for layer in model.encoder.layer], meter),
    ):
        model(input_ids=torch.ones(2, 69, dtype=torch.long))


def test_dropout_is_refused():
    dropped = nn.functional.dropout(uniform(69), 0.5)
    with pytest.raises(ValueError, match=r"expected at most 0\.01: turn dropout off"):
        flows([dropped], *masks())


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda said, seen: (said, seen | said), "are language and vision"),
        (lambda said, seen: (said & False, seen), "sample 0 has no language"),
        (lambda said, seen: (said, seen[:, :-1]), "masks have the shapes"),
        (lambda said, seen: (said, seen, seen), "are not attended to"),
    ],
)
def test_masks_that_cannot_be_are_refused(spoil, message):
    with pytest.raises(ValueError, match=message):
        FlowMeter(*spoil(*masks()))


def test_maps_of_another_shape_are_refused():
    with pytest.raises(ValueError, match=r"has the shape \(2, 1, 60, 60\), expected \(2, heads, 69, 69\)"):
        flows([uniform(60)], *masks())
    with pytest.raises(ValueError, match="no layer was counted"):
        _ = FlowMeter(*masks()).rolled_out
    with pytest.raises(ValueError, match="expected one of each"):
        baseline(0, 3)


def test_flow_of_the_fused_layers_of_hd_vila():
    """Words and a clip, read together by the upper half of a BERT with fused attention."""
    from tests.hd_vila.test_module import module

    network = module(task="answers", num_answers=12).network.eval()
    bert = network.transformer.bert
    dim = bert.embeddings.word_embeddings.embedding_dim
    states, maps = torch.randn(2, 5, dim), torch.randn(2, 1, dim, 4, 4)
    there = torch.tensor([[True] * 5, [True] * 3 + [False] * 2])
    seen = bert.visual_embeddings(maps[:, 0]).shape[1]
    language = nn.functional.pad(there, (0, seen))
    vision = torch.arange(5 + seen).expand(2, -1) >= 5
    meter, layers = FlowMeter(language, vision), bert.encoder.layer[network.half :]
    with watching([layer.attention.self for layer in layers], meter, projected), torch.no_grad():
        network.fuse(states, there, maps)
    assert len(meter.layers) == len(layers) > 0
    for flow in (*meter.layers, meter.rolled_out):
        assert ((flow.symmetric > 0) & (flow.symmetric < 1)).all()
        torch.testing.assert_close(
            language.sum(1) * flow.to_language + seen * flow.to_vision, (language.sum(1) + seen) * flow.symmetric
        )


def test_flow_of_the_third_part_of_lf_vila():
    """A paragraph and a video, read together."""
    from stages.composing import compose
    from tests.lf_vila.test_module import build

    network = build(compose("tiny", system="lf_vila")["system"], task="fuse").network.eval()
    bert, dim = network.text_encoder.bert, network.text_encoder.config.hidden_size
    place = network.video_token_pos
    tokens = torch.randn(2, network.frames, place.s_pos_embed.shape[2], dim)
    ids = torch.randint(5, 50, (2, network.clips, 4))
    with torch.no_grad():
        texts = network.read_texts(ids, torch.ones_like(ids, dtype=torch.bool))
    seen = place(tokens).shape[1]
    words = texts.states.shape[1]
    language = (torch.arange(words + seen) < words).expand(2, -1)
    meter = FlowMeter(language, ~language)
    layers = bert.encoder.layer[network.together :]
    with watching([layer.attention.self for layer in layers], meter, projected), torch.no_grad():
        network.fuse(texts, tokens)
    assert len(meter.layers) == len(layers) > 0
    assert ((meter.rolled_out.relative > 0) & (meter.rolled_out.symmetric < 1)).all()


def test_words_and_visual_tokens_side_by_side():
    """Padding of either side is left out; [CLS] is attended to and counts where the caller says so."""
    words, seen = torch.tensor([[1, 1, 1, 0], [1, 1, 1, 1]]).bool(), torch.tensor([[1, 1, 0], [1, 1, 1]]).bool()
    there = torch.cat([words, seen], 1)
    equal = there[:, None].float().expand(-1, 7, -1) / there.sum(1)[:, None, None]
    for attended, counted in ((None, words), (words, words & (torch.arange(4) > 0))):
        meter = side_by_side(counted, seen, attended)
        meter.update(equal)
        found = meter.columns()
        assert found["relative"].flatten().tolist() == pytest.approx([1, 1])
        assert found["rolled_out"].tolist() == pytest.approx([1, 1])
        assert found["to_language"].flatten().tolist() == pytest.approx([2 / 5, 3 / 7])
        assert found["to_vision"].flatten().tolist() == pytest.approx(
            [int(counted[0].sum()) / 5, int(counted[1].sum()) / 7]
        )


def test_compiled_layers_are_watched():
    model, ids = bert("sdpa"), torch.randint(50, (2, 69))
    meter, known = FlowMeter(*masks()), FlowMeter(*masks())
    layers = [layer.attention.self for layer in model.encoder.layer]
    with watching(layers, known, projected), torch.no_grad():
        model(input_ids=ids)
    for layer in model.encoder.layer:
        layer.compile(backend="eager")
    with torch.no_grad():
        model(input_ids=ids)
        with watching(layers, meter, projected):
            model(input_ids=ids)
    torch.testing.assert_close(meter.layers, known.layers)
