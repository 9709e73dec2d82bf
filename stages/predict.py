"""Use a trained model on your files: the results of an arm say what answers with it.

    python -m stages.predict data/results/tiny/committees/committees-digits three.png rows.npy
    python -m stages.predict data/results/tiny/clip_vip/clip_vip-world_video_text folder-of-videos sentences.txt
    python -m stages.predict data/results/tiny/maskalign/maskalign-world_graded mine.png --among pictures --out features
    python -m stages.predict data/results/tiny/unified_t2i_i2t/unified_t2i_i2t mine.png captions.txt --out drawn

Classifiers print the class of each picture; a committee also which member answered, and the cost in MACs. A retriever
takes videos, and one text file (.txt) with one sentence per line, and prints the sentences that fit each video best. An
encoder gives the features of a picture, and its nearest pictures among those of a folder (--among) or the test pictures
of its data set. The generator gives a caption for a picture, and a picture for each line of a text file.

An array file (.npy) has pictures in the form of the data set: (rows, height, width) or (rows, height, width, channels).
Picture files are brought to the model's size, and to grey or RGB (`lightning_modules/datasets/pictures.py`); how videos
are read says `lightning_modules/datasets/video/files.py`. Every file of a folder is tried, and a file that cannot be
read is named. The exit code is then 1. With --out, features are written as .npy, and pictures as .png.
"""

import argparse
import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from lightning_modules import predictors
from lightning_modules.files import replace_file
from stages.command import run_stage


def files_in(inputs: Iterable[Path]) -> list[Path]:
    """The files that are given, and all files in the folders that are given."""
    inside = (sorted(path.iterdir()) if path.is_dir() else [path] for path in inputs)
    return [path for paths in inside for path in paths if not path.is_dir()]


def told(value: Any, name: str, out: Path | None) -> Any:
    """A value of an answer as it is printed: arrays and pictures by the file they were written to, or by their size."""
    if isinstance(value, np.ndarray):
        return written(out / f"{name}.npy", value) if out else f"{list(value.shape)}, see --out"
    if hasattr(value, "save"):  # a picture
        return written(out / f"{name}.png", value) if out else f"{list(value.size)}, see --out"
    return value


def written(path: Path, value: Any) -> str:
    """Write an array or a picture, whole or not at all."""
    with replace_file(path) as temporary, temporary.open("wb") as file:
        np.save(file, value) if isinstance(value, np.ndarray) else value.save(file, "PNG")
    return str(path)


def main() -> None:
    """Load the model, answer each input, print a line for each answer."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="results of an arm, with predictor.json")
    parser.add_argument("inputs", type=Path, nargs="+", help="files or folders, and for a retriever a .txt file")
    parser.add_argument("--among", type=Path, help="folder of pictures that answers are chosen from")
    parser.add_argument("--top", type=int, default=3, help="length of a ranking (default: 3)")
    parser.add_argument("--out", type=Path, help="folder to write features (.npy) and pictures (.png) to")
    parser.add_argument("--json", action="store_true", help="print one JSON object for each answer")
    arguments = parser.parse_args()
    if arguments.top < 1:
        raise ValueError(f"--top is {arguments.top}, expected at least 1")
    predictor = predictors.load(arguments.model)
    asked = predictor.begin(arguments.inputs, arguments.among)
    taken = set(arguments.inputs) - set(asked)  # such as the file with the sentences
    files, failed = [path for path in files_in(asked) if path not in taken], 0
    for number, path in enumerate(files):
        try:
            answers = list(predictor.answer(path, arguments.top))
        except ValueError as error:
            print(f"no answer: {error}", file=sys.stderr)
            failed += 1
            continue
        for found in answers:
            place = f"{number}-{path.stem}" + (f"-{found['row']}" if "row" in found else "")
            line = {"input": str(path)} | {key: told(x, f"{place}-{key}", arguments.out) for key, x in found.items()}
            print(json.dumps(line) if arguments.json else "  ".join(f"{key} {value}" for key, value in line.items()))
    for reason in predictor.refused:
        print(f"left out: {reason}", file=sys.stderr)
    if failed or not files:
        raise ValueError(f"{failed} of {len(files)} files could not be answered{', see above' if failed else ''}")
    if predictor.refused:
        raise ValueError(f"{len(predictor.refused)} files could not be compared with, see above")


if __name__ == "__main__":
    run_stage(main)
