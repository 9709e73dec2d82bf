import pytest
import torch
import torch.nn.functional as F

from lightning_modules.datasets.world.quadrants import described
from lightning_modules.mm_gem.classes import class_vectors, prompts_about


def test_a_class_is_the_mean_of_its_texts_with_length_1():
    vectors = F.normalize(torch.randn(6, 5, generator=torch.Generator().manual_seed(0)), dim=1)
    given = {name: vectors[number] for number, name in enumerate("abcdef")}
    found = class_vectors(lambda texts: torch.stack([given[text] for text in texts]), ["ace", "bdf"])
    torch.testing.assert_close(found, F.normalize(torch.stack([vectors[::2].mean(0), vectors[1::2].mean(0)]), dim=1))


@pytest.mark.parametrize("prompts", [[], [[], []], [["a"], ["a", "b"]]])
def test_classes_with_unequal_numbers_of_texts_are_refused(prompts):
    with pytest.raises(ValueError, match="as many of each"):
        class_vectors(lambda texts: torch.eye(len(texts)), prompts)


@pytest.mark.parametrize(("name", "count"), [("size", 64), ("color", 16), ("shape", 16)])
def test_prompts_say_the_class_in_all_phrases_of_the_world(name, count):
    prompts = prompts_about(name)
    for number, texts in enumerate(prompts):
        assert len(set(texts)) == count
        assert {described(text)[0][name] for text in texts} == {number}
