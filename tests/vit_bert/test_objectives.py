"""Losses of labels and of teachers."""

import pytest
import torch

from lightning_modules.vit_bert.objectives import cross_entropy, distillation, mixed


def logits(seed):
    return torch.randn(7, 5, generator=torch.Generator().manual_seed(seed), dtype=torch.float32)


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_a_student_that_says_the_same_has_nothing_to_learn(temperature):
    student = logits(0).requires_grad_()
    loss = distillation(student, logits(0) + 3.0, temperature)
    loss.backward()
    assert loss.item() == pytest.approx(0.0, abs=1e-5)
    torch.testing.assert_close(student.grad, torch.zeros(7, 5), atol=1e-6, rtol=0)


def test_its_gradient_is_the_difference_of_the_distributions():
    student, teacher = logits(0).requires_grad_(), logits(1)
    distillation(student, teacher, 1.0).backward()
    expected = (student.detach().softmax(1) - teacher.softmax(1)) / 7
    torch.testing.assert_close(student.grad, expected, rtol=1e-5, atol=1e-6)


def test_temperature_keeps_the_size_of_the_gradient():
    """T^2 KL: at a high temperature the gradient is that of squared differences of centred logits, without T."""
    student, teacher = logits(0).requires_grad_(), logits(1)
    distillation(student, teacher, 1000.0).backward()
    difference = student.detach() - teacher
    expected = (difference - difference.mean(1, keepdim=True)) / 5 / 7
    torch.testing.assert_close(student.grad, expected, rtol=1e-2, atol=1e-4)


def test_shares_of_labels_and_teachers():
    assert mixed(torch.tensor(1.0), torch.tensor(3.0), 0.25).item() == 1.5
    assert mixed(torch.tensor(1.0), None, 0.25).item() == 1.0


def test_nothing_to_judge_costs_nothing():
    assert cross_entropy(torch.zeros(0, 5), torch.zeros(0, dtype=torch.long)) == 0
    assert distillation(torch.zeros(0, 5), torch.zeros(0, 5), 1.0) == 0
