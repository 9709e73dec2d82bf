"""What tests are told about a call that does not fit the annotations of the code."""

import pytest
import torch
from beartype.roar import BeartypeCallHintViolation
from jaxtyping import TypeCheckError

from lightning_modules.metrics.compute import count_parameters
from lightning_modules.settings import meant
from lightning_modules.tasks.augmentation import cutmix_box, random_shift


def test_a_shape_or_a_type_that_does_not_fit_is_refused():
    random_shift(torch.ones(1, 3, 4, 4), 1)
    for call in (lambda: random_shift(torch.ones(3, 4, 4), 1), lambda: cutmix_box(0.5, 8, "8")):
        with pytest.raises(TypeCheckError):
            call()
    for call in (lambda: count_parameters("a network"), lambda: meant("a name", 3)):
        with pytest.raises(BeartypeCallHintViolation):
            call()
