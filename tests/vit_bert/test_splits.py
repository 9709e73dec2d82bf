"""Pictures that fine-tuning is judged on were learnt in no pre-training of the same seed."""

import numpy as np

from lightning_modules.datasets.splits import draw_splits
from stages.composing import compose


def test_pre_training_and_fine_tuning_draw_the_same_test_rows():
    tree = compose("tiny", system="vit_bert", stage="finetune")["system"]
    before = tree["data"]["tasks"]["images"]["data"]["splits"]
    after = tree["downstream"]["images"]["data"]["splits"]
    for seed in range(3):
        learnt, tuned = (draw_splits({"all": 1797}, splits, seed) for splits in (before, after))
        np.testing.assert_array_equal(learnt["test"][1], tuned["test"][1])
        np.testing.assert_array_equal(learnt["val"][1], tuned["val"][1])
        assert set(tuned["train"][1]) <= set(learnt["train"][1])
