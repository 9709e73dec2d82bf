"""Pre-training: what is masked, what is asked, where gradients go, and how much attention flows."""

import math

import pytest
import torch

from lightning_modules.layers.bert import NO_LABEL
from lightning_modules.settings import check
from lightning_modules.visual_parsing.evaluation import searches
from lightning_modules.visual_parsing.module import Recipe, _with_other
from lightning_modules.visual_parsing.network import targets
from tests.visual_parsing import small

LOSSES = small.TRAINED["losses"]


def run(module, batch, seed=0):
    torch.manual_seed(seed)
    shown = module.shown(batch)
    fused = module._fuse(shown)
    return shown, fused, module.terms(shown, fused)


def test_a_step_learns_three_tasks_and_every_part_of_the_network():
    module = small.module()
    torch.manual_seed(1)
    loss = module.training_step(small.batch())
    loss.backward()
    still = [name for name, x in module.named_parameters() if x.grad is None or not x.grad.any()]
    assert not [name for name in still if "relative_position_bias" not in name and "key.bias" not in name
                and "k_proj.bias" not in name], still  # fmt: skip


@pytest.mark.parametrize("regression", ["joint", "apart"])
def test_a_token_and_its_nearest_are_hidden_behind_one_vector(regression):
    module, batch = small.module(regression=regression).eval(), small.batch()
    shown, _, terms = run(module, batch)
    assert (shown.hidden.sum(1) == 4).all(), "a pivot, and the three that it attends to most"
    assert terms.keys() == {"words", "matching", "features"}
    parsed, there = module.parsed(batch)
    changed = parsed._replace(features=parsed.features + 3 * torch.randn(6, 16, 16) * shown.hidden[:, :, None])
    states = [module.network.fuse(batch["token_ids"], batch["attention_mask"], each, there, shown.hidden)
              for each in (parsed, changed)]  # fmt: skip
    torch.testing.assert_close(states[0].text, states[1].text), "what is hidden is not seen"
    torch.testing.assert_close(states[0].vision, states[1].vision)


def test_targets_have_no_gradient_and_are_normalised():
    tokens = torch.randn(3, 5, 16, requires_grad=True)
    found = targets(tokens)
    assert not found.requires_grad
    torch.testing.assert_close(found.mean(-1), torch.zeros(3, 5), atol=1e-6, rtol=0)
    assert found.square().mean().item() == pytest.approx(1, abs=1e-3), "the loss of saying nothing: 1 for each feature"


def test_a_regression_of_its_own_leaves_the_visual_encoder_alone():
    reached = {}
    for regression in ("joint", "apart"):
        module = small.module(regression=regression)
        _, _, terms = run(module, small.batch())
        terms["features"].backward()
        reached[regression] = any(x.grad is not None and x.grad.any() for x in module.network.visual.parameters())
        assert module.network.mask_token.grad.any() and module.network.mfr_head[0].weight.grad.any()
    assert reached == {"joint": True, "apart": False}


def test_words_and_features_are_asked_for_only_where_text_and_picture_match():
    module, batch = small.module(unmatched=1.0), small.batch()
    shown, _, terms = run(module, batch)
    assert not shown.matched.any() and (shown.labels == NO_LABEL).all()
    assert terms["words"] == 0 and terms["features"] == 0 and terms["matching"] > 0
    assert not (shown.whole == batch["token_ids"]).all(1).any(), "each has the text of another row"
    shown, _, _ = run(small.module(unmatched=0.0), batch)
    assert shown.matched.all() and (shown.whole == batch["token_ids"]).all()
    asked = shown.labels != NO_LABEL
    assert asked.any() and (shown.labels[asked] == batch["token_ids"][asked]).all()
    assert not asked[:, 0].any() and not asked[~batch["attention_mask"]].any(), "special tokens are never asked for"


def test_a_loss_without_weight_is_not_computed():
    weights = {"words": 0.0, "matching": 0.0, "features": 1.0}
    shown, _, terms = run(small.module(losses=weights), small.batch())
    assert terms.keys() == {"features"} and shown.matched.all() and (shown.labels == NO_LABEL).all()
    module = small.module(visual_masking={"how": "none", "pivots": 1, "neighbours": 3})
    shown, _, terms = run(module, small.batch())
    assert terms.keys() == {"words", "matching"} and not shown.hidden.any()
    assert module.facts()["masking"] == "none"


def test_shuffled_pairs_have_the_text_of_another_picture():
    batch = small.batch()
    shown, _, _ = run(small.module(pairs="shuffled", unmatched=0.0), batch)
    assert not (shown.whole == batch["token_ids"]).all(1).any() and shown.matched.all()


def test_losses_at_the_start_are_those_of_who_knows_nothing():
    """With heads that say nothing: ln of the number of words, ln 2, and 1 for each normalised feature."""
    module = small.module()
    network = module.network
    for part in (network.itm_head, network.mfr_head[-1], network.mlm_head.transform.LayerNorm):
        for x in part.parameters():
            torch.nn.init.zeros_(x)
    _, _, terms = run(module, small.batch())
    assert terms["words"].item() == pytest.approx(math.log(57), rel=1e-5)
    assert terms["matching"].item() == pytest.approx(math.log(2), rel=1e-5)
    assert terms["features"].item() == pytest.approx(1, rel=1e-3)


def test_words_are_predicted_by_the_word_embeddings_themselves():
    network = small.module().network
    assert not [name for name, x in network.mlm_head.named_parameters() if x.shape == (57, 16)]


@torch.no_grad()
def test_padding_is_neither_attended_to_nor_counted():
    """A picture with black beyond it and a text with padding give what they give without."""
    module, batch = small.module(visual={**small.VISUAL, "windows": "several"}).eval(), small.batch(size=48)
    batch["sizes"] = torch.tensor([[48, 24]] + [[48, 48]] * 5)
    parsed, there = module.parsed(batch)
    assert there[0].sum() == 18 and there[1:].all()
    fused = module.network.fuse(batch["token_ids"], batch["attention_mask"], parsed, there)
    other = parsed._replace(features=parsed.features + 5 * (~there)[:, :, None])
    again = module.network.fuse(batch["token_ids"], batch["attention_mask"], other, there)
    torch.testing.assert_close(fused.text, again.text)
    flow = module.flow(batch)
    language, vision = batch["attention_mask"].sum(1).double(), there.sum(1).double()
    baseline = 2 * language * vision / (language + vision) ** 2
    torch.testing.assert_close(flow["symmetric"].double() / flow["relative"].double(), baseline[:, None].expand(-1, 2))


@torch.no_grad()
def test_flow_is_that_of_the_attention_maps_which_are_eager_only_while_they_are_watched():
    module, batch = small.module().eval(), small.batch()
    before = module.network.bert.config._attn_implementation
    found = module.flow(batch)
    assert module.network.bert.config._attn_implementation == before != "eager"
    parsed, there = module.parsed(batch)
    maps = []
    with module.network.attending() as layers:
        handles = [layer.register_forward_hook(lambda m, a, out: maps.append(out[1].mean(1))) for layer in layers]
        eager = module.network.fuse(batch["token_ids"], batch["attention_mask"], parsed, there)
        for handle in handles:
            handle.remove()
    fused = module.network.fuse(batch["token_ids"], batch["attention_mask"], parsed, there)
    torch.testing.assert_close(eager.text, fused.text, atol=1e-5, rtol=1e-4)
    for layer, attention in enumerate(maps):
        words = batch["attention_mask"][1].nonzero()[:, 0]
        crossing = attention[1][words, 10:].sum() + attention[1][10:][:, words].sum()
        assert found["symmetric"][1, layer].item() == pytest.approx(crossing.item() / (len(words) + 16), rel=1e-4)
    content = module.flow(batch, special=False)
    assert (content["symmetric"] < found["symmetric"]).all()


@pytest.mark.parametrize("pairs", ["matched", "shuffled"])
def test_a_text_that_does_not_match_is_neither_the_own_one_nor_that_of_the_pair(pairs):
    module, batch = small.module(pairs=pairs, losses={"words": 0.0, "matching": 1.0, "features": 0.0}), small.batch()
    batch["token_ids"] = batch["token_ids"][0].expand(6, -1) + 0
    batch["token_ids"][:, 3] = torch.arange(10, 16)
    for seed in range(40):
        shown, _, _ = run(module, batch, seed)
        moved = (shown.whole[:, 3] - 10 - torch.arange(6)) % 6
        own, other = set(moved[shown.matched].tolist()), set(moved[~shown.matched].tolist())
        assert len(own | other) == len(own) + len(other) <= 2, "one move for each"
        assert 0 not in other and (own <= {0} if pairs == "matched" else 0 not in own)


@torch.no_grad()
def test_a_batch_without_another_text_has_none_that_does_not_match():
    for rows, changes in ((1, {}), (2, {"pairs": "shuffled"})):
        module, batch = small.module(unmatched=1.0, **changes), small.batch(rows=6)
        few = {name: x[-rows:] for name, x in batch.items()}
        with pytest.raises(ValueError, match=rf"has {rows} rows, but exchanging texts needs {rows + 1}"):
            module.training_step(few)
        shown = module.eval().shown(few)
        assert shown.matched.all()


@torch.no_grad()
def test_the_other_text_of_a_row_is_that_of_the_row_before_also_across_batches():
    module, data = small.module(), small.Data()
    whole, parts = data.batch, ([0, 1, 2], [3, 4], [5])
    data.evaluation_batches = lambda split: ({name: x[rows] for name, x in whole.items()} for rows in parts)
    found = list(module._batches(data, "test", torch.device("cpu")))
    others = torch.cat([_with_other(batch)["token_ids"] for batch in found])
    assert torch.equal(others[1:], whole["token_ids"][:-1]) and torch.equal(others[0], whole["token_ids"][2])
    data.evaluation_batches = lambda split: ({name: x[rows] for name, x in whole.items()} for rows in ([0], [1, 2]))
    with pytest.raises(ValueError, match="first batch of the split test has one row"):
        next(module._batches(data, "test", torch.device("cpu")))


def judged(**changes):
    """Which words are asked for, and which tokens are hidden at random, of a network with these settings."""
    module, found = small.module(**changes), {"words": [], "hidden": []}
    read, hide = module.network.word_logits, module._hidden

    def reading(fused, asked):
        found["words"].append(asked)
        return read(fused, asked)

    def hiding(parsed, there, how):
        hidden = hide(parsed, there, how)
        if how == "random":
            found["hidden"].append(hidden)
        return hidden

    module.network.word_logits, module._hidden = reading, hiding
    module.predictions(small.Data(), torch.device("cpu"))
    return found


def test_arms_are_judged_with_the_same_words_and_the_same_random_masks():
    cnn = {"visual": {**small.VISUAL, "kind": "cnn"}, "visual_masking": {"how": "random", "pivots": 1, "neighbours": 3}}
    first = judged()
    others = [judged(losses=LOSSES | {"words": 0.0}), judged(losses=LOSSES | {"matching": 0.0}), judged(**cnn)]
    assert all(torch.equal(each["hidden"][0], first["hidden"][0]) for each in others)
    assert [len(each["words"]) for each in others] == [0, 1, 1]
    assert all(torch.equal(each["words"][0], first["words"][0]) for each in others[1:])


def test_predictions_are_the_same_each_time_and_leave_the_random_state_alone():
    module, data = small.module(ranked=2).eval(), small.Data()
    torch.manual_seed(5)
    first = module.predictions(data, torch.device("cpu"))
    after = torch.rand(1)
    torch.manual_seed(5)
    assert torch.rand(1) == after
    second = module.predictions(data, torch.device("cpu"))
    assert first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)
    assert first["retrieval/0/scores"].shape == (4, 2)
    assert first["regression/guided/own"].shape == (6, 2)
    assert first["right/matching"].shape == (12,)


@torch.no_grad()
def test_search_scores_are_those_of_each_pair_alone():
    module, data = small.module(ranked=3).eval(), small.Data()
    scores = module.predictions(data, torch.device("cpu"))["retrieval/0/scores"]
    batch = data.batch
    parsed, there = module.parsed({"images": batch["images"][2:3]})
    fused = module.network.fuse(batch["token_ids"][1:2], batch["attention_mask"][1:2], parsed, there)
    logits = module.network.matching(fused)[0]
    assert scores[1, 2].item() == pytest.approx((logits[0] - logits[1]).item(), abs=1e-5)


def test_parts_of_the_pictures_are_searched_each_and_together():
    """Each part alone gives the scores that all together give of it, and metrics are means over parts."""
    apart, whole = (small.module(ranked=2, parts=5, together=together) for together in (False, True))
    parts, found = ({name: x.numpy() for name, x in module.predictions(small.Data(), torch.device("cpu")).items()}
                    for module in (apart, whole))  # fmt: skip
    assert [parts[f"retrieval/{part}/scores"].shape for part in range(3)] == [(4, 2)] * 3, (
        "six pictures are three parts"
    )
    assert found["retrieval/all/scores"].shape == (12, 6) and "retrieval/0/scores" not in found
    of_parts, of_all = searches(parts), searches(found)
    assert of_parts == pytest.approx({name: x for name, x in of_all.items() if not name.startswith("search_together/")})
    assert len(of_all) == 2 * len(of_parts)
    assert of_all["search_together/text_to_picture/mean_rank"] > of_all["search/text_to_picture/mean_rank"]


@torch.no_grad()
def test_what_the_page_shows_as_masked_could_be_masked():
    module, batch = small.module(visual={**small.VISUAL, "windows": "several"}).eval(), small.batch(size=48)
    batch["sizes"] = torch.tensor([[48, 24]] * 6)
    found = module._for_the_page(batch)
    _, there = module.parsed(batch)
    at = torch.arange(6)
    assert there[at, found["shown/pivot"]].all() and not (found["shown/hidden"] & ~there).any()
    assert not (found["shown/hidden"] & (found["shown/weights"] == 0)).any(), "tokens of other windows"


@pytest.mark.parametrize("betas", [[0.9], [0.9, 0.95, 0.98]])
def test_adam_has_two_betas(betas):
    recipe = {"optimizer": "adamw", "betas": betas, "visual_lr": 1.0, "clip": None, "lr": 1e-3, "weight_decay": 0.0,
              "schedule": "cosine", "warmup": 0.1, "epochs": 1}  # fmt: skip
    with pytest.raises(ValueError, match="betas"):
        check(recipe, Recipe, "pretrain")


def test_the_layers_of_the_transformer_are_compiled_in_every_training():
    assert len(small.module().compiled_parts()) == len(small.answering().compiled_parts()) == 2


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"visual": {**small.VISUAL, "kind": "cnn"}}, "cnn"),
        ({"losses": dict.fromkeys(("words", "matching", "features"), 0.0)}, "all zero"),
        ({"bert": {"hub": None, "sizes": None}}, r"bert: hub"),
        ({"bert": {"hub": "some/bert", "sizes": small.BERT["sizes"]}}, r"bert: hub"),
    ],
)
def test_settings_that_do_not_fit_are_refused(changes, told):
    with pytest.raises(ValueError, match=told):
        small.module(**changes)


@pytest.mark.parametrize(
    ("changes", "told"), [({"task": "pair"}, "caption"), ({"words": 9}, "9 ids"), ({"text_length": 20}, "positions")]
)
def test_data_that_do_not_fit_are_refused(changes, told):
    with pytest.raises(ValueError, match=told):
        small.module().check_data(small.Data(**changes))


def test_more_visual_tokens_than_positions_are_refused():
    module = small.module(positions=2)
    with pytest.raises(ValueError, match=r"model\.positions is 2"):
        run(module, small.batch())
    run(small.module(positions=None), small.batch())
