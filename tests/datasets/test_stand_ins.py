"""Stand-ins of data sets are in the official form: the data set's own `prepare` reads them."""

import inspect
import json

import numpy as np
import pytest
from hydra.utils import get_method

from lightning_modules import rehearsal, settings
from lightning_modules.datasets import storage, tokenizers
from lightning_modules.datasets.tokenizers import published_tokenizer
from stages.composing import compose
from stages.plan import PRESETS
from stages.sources import configured
from tests.reading import read_all

read_all()
CONFIGURED = [
    (name, preset) for preset in PRESETS for name in configured("dataset", preset)
    if "mirror" in inspect.signature(get_method(compose(preset, dataset=name)["dataset"]["_target_"])).parameters
]  # fmt: skip
ROWS = 6


@pytest.mark.parametrize(("name", "preset"), CONFIGURED)
def test_every_data_set_that_is_not_drawn_here_has_a_stand_in_that_its_prepare_reads(tmp_path, name, preset):
    config = compose(preset, dataset=name)["dataset"]
    settings.bind(config, "conf")
    made = get_method(config["_target_"].replace(".prepare", ".stand_in"))(tmp_path, rows=ROWS, **config)
    settings.bind(config | made.config, "conf")(tmp_path / "prepared")
    card = json.loads((tmp_path / "prepared/card.json").read_text())
    assert card["splits"].keys() == made.whole.keys() == (config.get("splits") or made.whole).keys()
    counts = [split if isinstance(split, int) else split["rows"] for split in card["splits"].values()]
    assert min(counts) >= ROWS and max(counts) <= 2 * ROWS


def test_a_rehearsal_prepares_only_the_first_rows(tmp_path, monkeypatch):
    monkeypatch.setattr(rehearsal, "current", rehearsal.Rehearsal(rows=300))
    columns = {"id": np.arange(1000), "image": np.zeros((1000, 2, 2, 1), np.uint8), "label": np.zeros(1000, np.int64)}
    assert storage.write(tmp_path, "train", columns, "raw", (2, 2, 1)).rows == 300
    monkeypatch.setattr(rehearsal, "current", None)
    assert storage.write(tmp_path, "train", columns, "raw", (2, 2, 1)).rows == 1000


@pytest.mark.parametrize("name", tokenizers.SPELLED)
def test_a_published_tokenizer_that_cannot_be_had_is_replaced_in_a_rehearsal_only(monkeypatch, name):
    def unreachable(*_, **__):
        raise OSError("no route to host")

    monkeypatch.setattr("transformers.AutoTokenizer.from_pretrained", unreachable)
    with pytest.raises(ConnectionError, match=f"tokenizer {name} could not be fetched.*`hf download {name}`"):
        published_tokenizer(name)
    here = rehearsal.Rehearsal(rows=1)
    monkeypatch.setattr(rehearsal, "current", here)
    tokenizer = published_tokenizer(name)
    assert here.replaced == {f"tokenizer {name}"}
    ids, mask = tokenizer(["A dog.", "zebras?"], 12)
    assert ids.shape == (2, 12) and mask[0].sum() == 7
    assert (ids[mask] == tokenizer.unknown_id).sum() == 2 * (tokenizer.unknown_id == tokenizer.end_id)
    published = {"bert": (30_522, 0, 101, 102, 103, 1012), "clip": (49_408, 49_407, 49_406, 49_407, None, None)}
    size, pad, start, end, mask_id, stop = published["bert" if "bert" in name else "clip"]
    assert (len(tokenizer), tokenizer.pad_id, tokenizer.start_id, tokenizer.end_id) == (size, pad, start, end)
    assert tokenizer.mask_id == mask_id and stop in (None, int(ids[0, 5]))
