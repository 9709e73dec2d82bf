"""The unified network, its heads, its errors, and what it gives to `transformers`."""

import pytest
import torch
from pytorch_lightning import LightningDataModule
from transformers import BertConfig, BertModel

from lightning_modules.layers.published import load_strictly
from lightning_modules.vit_bert.network import Network
from tests.vit_bert.small import ENCODER, IMAGES, MASKING, TEXTS, batch, module


def test_pictures_and_texts_pass_through_the_same_layers():
    network = module()
    for part in batch().values():
        network.zero_grad()
        sum(network.terms(part).values()).backward()
        assert all(x.grad.any() for x in network.network.encoder("image").parameters())
    assert network.network.encoder("image") is network.network.encoder("text")


def test_networks_that_share_nothing_learn_apart():
    network, rows = module(shared=False), batch()
    sum(network.terms(rows["images"]).values()).backward()
    assert not any(x.grad is not None for x in network.network.encoder("text").parameters())
    assert all(x.grad.any() for x in network.network.encoder("image").parameters())


def test_words_are_read_with_the_embeddings_that_they_come_from():
    network = module().network
    features = torch.randn(1, 10, 8)
    asked = torch.zeros(1, 10, dtype=torch.bool)
    asked[0, 3] = True
    found = network.word_logits(features, asked)
    network.tokens["text"].words.weight.data[7] *= 2
    changed = network.word_logits(features, asked) != found
    assert changed.nonzero()[:, 1].tolist() == [7]


def test_padding_changes_nothing():
    network, rows = module().eval(), batch()["texts"]
    features = network.network.text_features(rows["token_ids"], rows["attention_mask"], rows["segments"])
    other = rows["token_ids"].clone()
    other[0, 7:] = 9
    again = network.network.text_features(other, rows["attention_mask"], rows["segments"])
    torch.testing.assert_close(features[0, :7], again[0, :7])


def test_post_norm_computes_what_bert_computes():
    torch.manual_seed(0)
    network = Network(encoder=ENCODER | {"norm": "post", "norm_eps": 1e-12}, images=IMAGES, texts=TEXTS, deviation=0.2)
    network.eval()
    sizes = {"hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    bert = BertModel(BertConfig(**sizes, vocab_size=40, max_position_embeddings=12), add_pooling_layer=False).eval()
    tokens, state = network.tokens["text"], {}
    state["embeddings.word_embeddings.weight"] = tokens.words.weight
    state["embeddings.position_embeddings.weight"] = tokens.positions
    state["embeddings.token_type_embeddings.weight"] = tokens.segments.weight
    state |= {f"embeddings.LayerNorm.{name}": x for name, x in tokens.norm.named_parameters()}
    places = {"attn.proj": "attention.output.dense", "norm1": "attention.output.LayerNorm",
              "mlp.fc1": "intermediate.dense", "mlp.fc2": "output.dense", "norm2": "output.LayerNorm"}  # fmt: skip
    for number, block in enumerate(network.encoder("text").blocks):
        start = f"encoder.layer.{number}"
        for kind in ("weight", "bias"):
            for part, x in zip(("query", "key", "value"), getattr(block.attn.qkv, kind).chunk(3), strict=True):
                state[f"{start}.attention.self.{part}.{kind}"] = x
            state |= {
                f"{start}.{theirs}.{kind}": block.get_parameter(f"{ours}.{kind}") for ours, theirs in places.items()
            }
    load_strictly(bert, {name: x.detach() for name, x in state.items()}, "ours")
    rows = batch()["texts"]
    with torch.no_grad():
        ours = network.text_features(rows["token_ids"], rows["attention_mask"], rows["segments"])
        theirs = bert(rows["token_ids"], rows["attention_mask"].long(), rows["segments"]).last_hidden_state
    torch.testing.assert_close(ours[1:], theirs[1:], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(ours[0, :7], theirs[0, :7], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("modality_embedding", [False, True])
def test_the_side_of_pictures_is_a_vit_of_transformers(tmp_path, modality_embedding):
    from transformers import ViTModel

    network, rows = module(modality_embedding=modality_embedding).eval(), batch()["images"]
    network.to_transformers().model.save_pretrained(tmp_path)
    pixels = network.preprocess(rows["images"])
    with torch.no_grad():
        found = ViTModel.from_pretrained(tmp_path)(pixels).pooler_output
        expected = network.network.heads["images"].pooled(network.network.image_features(pixels))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_post_norm_is_no_vit():
    with pytest.raises(ValueError, match="norms follow the branches"):
        module(encoder=ENCODER | {"norm": "post"}).to_transformers()


def test_a_modality_may_have_a_vector_of_its_own():
    plain, network = module(), module(modality_embedding=True)
    assert sum(x.numel() for x in network.parameters()) - sum(x.numel() for x in plain.parameters()) == 2 * 8


def test_bad_settings_end_in_one_line():
    with pytest.raises(ValueError, match=r"model.gradients is 'mask', but nothing is shared: set it to sum"):
        module(shared=False, gradients="mask", masking=MASKING)
    with pytest.raises(ValueError, match=r"dim \(8\) must be a multiple of heads \(3\)"):
        module(encoder=ENCODER | {"heads": 3})
    with pytest.raises(ValueError, match=r"image_size \(8\) must be a multiple of patch_size \(3\)"):
        module(images=IMAGES | {"patch_size": 3})


def test_rows_of_the_wrong_size_end_in_one_line():
    network, rows = module(), batch()
    with pytest.raises(ValueError, match=r"pictures of 4 x 4 pixels do not fit model.images.image_size \(8\)"):
        network(rows["images"]["images"][..., :4, :4])
    with pytest.raises(ValueError, match=r"texts of 20 tokens are longer than model.texts.positions \(12\)"):
        network.network.embed_texts(rows["texts"]["token_ids"].repeat(1, 2))


class Task:
    def __init__(self, **facts):
        self.__dict__.update(facts)


class Data(LightningDataModule):
    def __init__(self, **tasks):
        super().__init__()
        self.tasks = tasks


@pytest.mark.parametrize(
    ("tasks", "message"),
    [
        ({"clips": Task()}, "data.tasks has 'clips', expected images and texts"),
        ({"images": Task(num_classes=6)}, "model.images.classes is 5, but the pictures have 6 classes"),
        (
            {"texts": Task(tokenizer=range(41), text_length=12, pairs=True)},
            "model.texts.words is 40, but the texts need 41",
        ),
        ({"texts": Task(tokenizer=range(40), text_length=13, pairs=True)}, "model.texts.positions is 12"),
        ({"texts": Task(tokenizer=range(40), text_length=12, pairs=False)}, "model.texts.pairs is True"),
    ],
)
def test_data_that_does_not_fit_is_refused(tasks, message):
    with pytest.raises(ValueError, match=message):
        module().check_data(Data(**tasks))


def test_teachers_without_weights_are_refused():
    taught = {"image": 0.5, "text": 0.0, "temperature": 1.0, "teachers": {"image": None, "text": None}}
    with pytest.raises(ValueError, match="the plan names no arm that has trained them"):
        module(distillation=taught).check_data(Data())


def test_a_training_that_learns_nothing_is_refused():
    with pytest.raises(ValueError, match=r"model.losses .* are all zero, expected one above 0"):
        module(losses={"images": 0.0, "words": 0.0, "pairs": 0.0})
