"""Tasks after pre-training: what is taken over, what is lost, and what is counted."""

import pytest
import torch
import torch.nn.functional as F

from tests.visual_parsing import small


def batch_of(task):
    found = small.batch()
    if task == "question":
        found["targets"] = torch.zeros(6, 22)
        found["targets"][torch.arange(6), torch.arange(6)] = torch.tensor([1.0, 0.9, 0.6, 0.3, 1.0, 1.0])
        found["kinds"] = torch.tensor([0, 1] * 3)
        return found
    found["labels"] = torch.tensor([0, 1] * 3)
    if task == "pair":
        found["images"] = torch.stack([found["images"], found["images"].flip(0)], 1)
        found["groups"] = torch.tensor([0, 0, 1, 1, 2, 2])
    return found


@pytest.mark.parametrize(("task", "outputs"), [("question", 22), ("entailment", 3), ("pair", 2)])
def test_a_step_trains_the_pre_trained_network_and_the_new_head(task, outputs):
    before, module = small.module(seed=3), small.answering(task, outputs)
    module.start_from(before.state_dict())
    for name, x in before.network.state_dict().items():
        assert torch.equal(module.network.state_dict()[name], x), name
    module.training_step(batch_of(task)).backward()
    assert module.head[0].weight.grad.any() and module.network.bert.embeddings.word_embeddings.weight.grad.any()
    assert module.network.visual.model.embeddings.patch_embeddings.projection.weight.grad.any()


def test_soft_labels_are_learnt_by_binary_cross_entropy():
    module, batch = small.answering(), batch_of("question")
    logits = module.logits(batch)
    likely = torch.sigmoid(logits)
    expected = -(batch["targets"] * likely.log() + (1 - batch["targets"]) * (1 - likely).log()).sum(1).mean()
    torch.testing.assert_close(module.loss(logits, batch), expected)
    said = F.one_hot(torch.tensor([0, 1, 2, 3, 0, 21]), 22).float()
    assert module.credit(said, batch).tolist() == pytest.approx([1.0, 0.9, 0.6, 0.3, 0.0, 0.0])


@torch.no_grad()
def test_of_two_pictures_each_is_read_with_the_text_and_their_order_counts():
    module, batch = small.answering("pair", 2).eval(), batch_of("pair")
    single = [module._read({**batch, "images": batch["images"][:, side]}) for side in (0, 1)]
    torch.testing.assert_close(module.logits(batch), module.head(torch.cat(single, 1)), atol=1e-5, rtol=1e-4)
    turned = {**batch, "images": batch["images"].flip(1)}
    assert not torch.allclose(module.logits(batch), module.logits(turned))


@pytest.mark.parametrize(("task", "outputs"), [("question", 22), ("entailment", 3), ("pair", 2)])
def test_what_is_judged(task, outputs):
    module, data = small.answering(task, outputs), small.Data(task)
    data.batch = batch_of(task)
    module.check_data(data)
    found = module.predictions(data, torch.device("cpu"))
    assert found["answers"].shape == found["credit"].shape == found["labels"].shape == (6,)
    assert ("kinds" in found) == (task == "question") and ("groups" in found) == (task == "pair")
    assert module.facts()["task"] == task and ("answers" in module.facts()) == (task == "question")
    with torch.no_grad():
        watched = module.validate(data, [data.batch])
    assert watched["accuracy"].item() == pytest.approx(found["credit"].mean().item())


def test_what_is_judged_besides_has_its_source_in_its_name():
    module, data = small.answering("pair", 2), small.Data("pair")
    data.batch, data.also = batch_of("pair"), ("dev",)
    found = module.predictions(data, torch.device("cpu"))
    assert torch.equal(found["also/dev/credit"], found["credit"]) and "also/dev/groups" in found


def test_a_question_without_a_right_answer_has_no_label():
    module, data = small.answering(), small.Data("question")
    data.batch = batch_of("question")
    data.batch["targets"][2] = 0
    module.check_data(data)
    assert module.predictions(data, torch.device("cpu"))["labels"].tolist() == [0, 1, -1, 3, 4, 5]


def test_settings_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="entailment has 3 labels"):
        small.answering("entailment", 2)
    with pytest.raises(ValueError, match=r"model\.task is 'pair'"):
        small.answering("pair", 2).check_data(small.Data("question"))
    with pytest.raises(ValueError, match=r"22 answers, but model\.outputs is 7"):
        small.answering("question", 7).check_data(small.Data("question"))
    with pytest.raises(ValueError, match="another architecture"):
        small.answering().start_from(small.module(positions=4).state_dict())
