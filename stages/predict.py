"""Use a trained model on your files: the results of an arm say what answers with it.

    python -m stages.predict data/results/tiny/committees/committees-digits three.png rows.npy
    python -m stages.predict data/results/tiny/clip_vip/clip_vip-world_video_text folder-of-videos sentences.txt
    python -m stages.predict data/results/tiny/maskalign/maskalign-world_graded mine.png --among pictures --out features
    python -m stages.predict data/results/tiny/unified_t2i_i2t/unified_t2i_i2t mine.png captions.txt --out drawn
    python -m stages.predict data/results/tiny/movinet/movinet-causal webcam:0 --fps 5
    ffmpeg -i mine.mp4 -f matroska - | python -m stages.predict data/results/tiny/movinet/movinet-causal -

Classifiers print the class of each picture; a committee also which member answered, and the cost in MACs. A retriever
takes videos, and one text file (.txt) with one sentence per line, and prints the sentences that fit each video best. An
encoder gives the features of a picture, and its nearest pictures among those of a folder (--among) or the test pictures
of its data set. The generator gives a caption for a picture, and a picture for each line of a text file. A causal video
network also watches a video that is running, from standard input (-) or a camera (webcam:0), and answers after each
frame until the video ends or Ctrl-C.

An array file (.npy) has pictures in the form of the data set: (rows, height, width) or (rows, height, width, channels).
Picture files are brought to the model's size, and to grey or RGB (`lightning_modules/datasets/pictures.py`); how videos
are read says `lightning_modules/datasets/video/files.py`. Every file of a folder is tried. What cannot be read, and a
folder inside a folder, is named, and the exit code is then 1. With --out, features are written as .npy, pictures as
.png, films as .mp4 and sounds as .wav.
"""

import argparse
import json
import os
import re
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from lightning_modules import predictors
from lightning_modules.files import replace_file
from lightning_modules.processes import Stopped
from stages.command import run_stage


def files_in(inputs: Iterable[Path]) -> list[Path]:
    """The files that are given, and all that is in the folders that are given."""
    return [path for given in inputs for path in (sorted(given.iterdir()) if given.is_dir() else [given])]


def told(value: Any, name: str, out: Path | None) -> Any:
    """A value of an answer as it is printed: arrays and pictures by the file they were written to, or by their size."""
    if isinstance(value, np.ndarray):
        return written(out / f"{name}.npy", value) if out else f"{list(value.shape)}, see --out"
    if hasattr(value, "save"):  # a picture, a film or a sound
        suffix = getattr(value, "suffix", ".png")
        return written(out / f"{name}{suffix}", value) if out else f"{list(value.size)}, see --out"
    return value


def written(path: Path, value: Any) -> str:
    """Write an array, a picture, a film or a sound, whole or not at all."""
    with replace_file(path) as temporary, temporary.open("wb") as file:
        if isinstance(value, np.ndarray):
            np.save(file, value)
        else:
            value.save(file, *(["PNG"] if path.suffix == ".png" else []))
    return str(path)


def place(text: str) -> Path | str:
    """An input: a file or folder as a path, a running video as it is."""
    return text if re.fullmatch("-|webcam:.*", text) else Path(text)


def main() -> None:
    """Load the model, answer each input, print a line for each answer as soon as it is there."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="results of an arm, with predictor.json")
    parser.add_argument(
        "inputs", type=place, nargs="+", help="files or folders, for a retriever a .txt file; or one of - and webcam:0"
    )
    parser.add_argument("--among", type=Path, help="folder of pictures that answers are chosen from")
    parser.add_argument("--top", type=int, default=3, help="length of a ranking (default: 3)")
    parser.add_argument("--fps", type=float, help="frames a second that are read of - and webcam:0 (default: all)")
    parser.add_argument("--out", type=Path, help="folder to write what is found to: .npy, .png, .mp4, .wav")
    parser.add_argument("--json", action="store_true", help="print one JSON object for each answer")
    arguments = parser.parse_args()
    if arguments.top < 1:
        raise ValueError(f"--top is {arguments.top}, expected at least 1")
    running = [source for source in arguments.inputs if isinstance(source, str)]
    if running and len(arguments.inputs) > 1:
        raise ValueError(f"{running[0]} is a running video and has no place beside other inputs: give it alone")
    if arguments.fps is not None and not running:
        raise ValueError("--fps is for - and webcam:0; a file is read as the model was trained: leave it out")
    predictor = predictors.load(arguments.model)
    try:
        watch(predictor, running[0], arguments) if running else answer(predictor, arguments)
    except BrokenPipeError:  # who reads the answers has seen enough; nothing must be written at exit either
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def watch(predictor: predictors.Predictor, source: str, arguments: argparse.Namespace) -> None:
    """Answer about a running video until it ends, or a signal does."""
    if not hasattr(predictor, "watch"):
        raise ValueError(f"{type(predictor).__name__} answers about files and cannot watch {source}")
    predictor.begin([], arguments.among)
    try:
        for found in predictor.watch(source, arguments.fps):
            say({"input": source} | found, arguments)
    except Stopped:
        print("stopped", file=sys.stderr)


def answer(predictor: predictors.Predictor, arguments: argparse.Namespace) -> None:
    """Answer about each file."""
    asked = predictor.begin(arguments.inputs, arguments.among)
    taken = set(arguments.inputs) - set(asked)  # such as the file with the sentences
    files, failed = [path for path in files_in(asked) if path not in taken], 0
    for number, path in enumerate(files):
        try:
            if path.is_dir():
                raise ValueError(f"{path} lies in a folder and is one itself: give it as an input of its own")
            for found in predictor.answer(path, arguments.top):
                name = f"{number}-{path.stem}" + (f"-{found['row']}" if "row" in found else "")
                answers = {key: told(x, f"{name}-{key}", arguments.out) for key, x in found.items()}
                say({"input": str(path)} | answers, arguments)
        except ValueError as error:
            print(f"no answer: {error}", file=sys.stderr)
            failed += 1
    for reason in predictor.refused:
        print(f"left out: {reason}", file=sys.stderr)
    if failed or not files:
        raise ValueError(f"{failed} of {len(files)} files could not be answered{', see above' if failed else ''}")
    if predictor.refused:
        raise ValueError(f"{len(predictor.refused)} files could not be compared with, see above")


def say(line: dict[str, Any], arguments: argparse.Namespace) -> None:
    """Print one answer."""
    words = json.dumps(line) if arguments.json else "  ".join(f"{key} {value}" for key, value in line.items())
    print(words, flush=True)


if __name__ == "__main__":
    run_stage(main)
