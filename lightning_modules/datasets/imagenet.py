"""ImageNet-1k (ILSVRC 2012): 1,281,167 training and 50,000 validation images in 1,000 classes, as JPEG.

Read `prepare` first. The three forms in which copies are found give the same rows; a class is the rank of its WordNet
id (wnid) in sorted order, as everywhere in the field. Images are stored as they come, never decoded: `storage.decode`
also opens the few files that are CMYK or PNG under a JPEG name.
"""

import io
import tarfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import batched
from pathlib import Path
from typing import Literal

import numpy as np

from lightning_modules.datasets import storage
from lightning_modules.datasets.download import fetch, find

TRAIN_TAR, VAL_TAR, DEVKIT = "ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar", "ILSVRC2012_devkit_t12.tar.gz"
HUB_SPLITS = {"train": "train", "val": "validation"}

Row = tuple[bytes, int]
