"""Use a trained model: a committee classifies images, a retriever ranks sentences for videos.

    python -m stages.predict data/results/tiny/committees/committees-digits three.png rows.npy
    python -m stages.predict data/results/tiny/clip_vip/clip_vip-world_video_text folder-of-videos sentences.txt

For each image, a committee prints the class, which member answered, and the cost in MACs. An array file (.npy) has
images in the form of the data set: (rows, height, width) or (rows, height, width, channels). Image files are converted
to the committee's size, and to grey or RGB; `lightning_modules/datasets/pictures.py` says how.

A retriever takes videos, and one text file (.txt) with one sentence per line. For each video it prints the sentences
that fit best; `lightning_modules/datasets/video/files.py` says how videos are read.

Both take folders too: every file in them is tried, and a file that cannot be read is named. The exit code is then 1.
"""

import argparse
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from lightning_modules.datasets import pictures
from stages.command import run_stage

Answer = Callable[[Path], Iterator[dict]]


def read_images(path: Path, shape: tuple[int, int, int], scale: float) -> np.ndarray:
    """Images of a file as pixels in the range of the data set, (rows, channels, height, width) float32.

    Raises:
        ValueError: the file is no image or array, or the array's images have another shape.
    """
    channels, height, width = shape
    if path.suffix == ".npy":
        images = _array(path)
        images = images[..., None] if images.ndim == 3 else images
        if images.ndim != 4 or images.shape[1:] != (height, width, channels):
            expected = f"(rows, {height}, {width}, {channels})"
            raise ValueError(f"{path} holds an array of shape {images.shape}; the committee expects {expected}")
        return images.transpose(0, 3, 1, 2).astype(np.float32)
    image = pictures.read(path, "L" if channels == 1 else "RGB", (width, height))
    return np.asarray(image, np.float32).reshape(1, height, width, channels).transpose(0, 3, 1, 2) * (scale / 255)


def _array(path: Path) -> np.ndarray:
    try:
        return np.load(path, allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise ValueError(f"{path} cannot be read as an array: {error}") from error


def classifier(folder: Path) -> Answer:
    """A committee that answers for the images of a file."""
    import torch

    from lightning_modules.committees.network import Committee
    from lightning_modules.ensembling.members import rebuild

    record = json.loads((folder / "committee.json").read_text())
    committee = Committee.load(folder, rebuild(record))

    def answer(path: Path) -> Iterator[dict]:
        images = torch.from_numpy(read_images(path, tuple(record["images"]["shape"]), record["images"]["scale"]))
        with torch.inference_mode():
            found = committee(images)
        for row, (shares, stage, macs) in enumerate(zip(*(x.tolist() for x in found), strict=True)):
            best = int(np.argmax(shares))
            name = record["members"][stage]["name"]
            line = {"row": row, "class": best, "probability": round(shares[best], 6)}
            yield line | {"answered_by": name, "members_asked": stage + 1, "macs": macs}

    return answer


def ranker(folder: Path, sentences: list[str], top: int) -> Answer:
    """A retriever that gives the best sentences for a video file."""
    from lightning_modules.clip_vip.retriever import Retriever

    retriever = Retriever.load(folder)

    def answer(path: Path) -> Iterator[dict]:
        for rank, (sentence, similarity) in enumerate(retriever.rank(path, sentences)[:top], start=1):
            yield {"rank": rank, "similarity": round(similarity, 6), "sentence": sentence}

    return answer


def read_sentences(inputs: list[Path]) -> tuple[list[str], list[Path]]:
    """The sentences of the one text file among the inputs, and the other inputs.

    Raises:
        ValueError: there is not exactly one text file, or it has no sentences, or nothing else is there.
    """
    lists, videos = [path for path in inputs if path.suffix == ".txt"], [p for p in inputs if p.suffix != ".txt"]
    sentences = [line for path in lists for line in map(str.strip, path.read_text("utf-8-sig").splitlines()) if line]
    if len(lists) != 1 or not sentences or not videos:
        raise ValueError(
            f"got {len(videos)} videos or folders, {len(lists)} text files and {len(sentences)} sentences; expected "
            "videos or a folder of them, and one .txt file with one sentence per line"
        )
    return sentences, videos


def main() -> None:
    """Load the model, answer each input, print a line for each answer."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="folder with committee.json or retriever.json, and the weights")
    parser.add_argument("inputs", type=Path, nargs="+", help="files or folders, and for a retriever a .txt file")
    parser.add_argument("--top", type=int, default=3, help="number of sentences for each video (default: 3)")
    parser.add_argument("--json", action="store_true", help="print one JSON object for each answer")
    arguments = parser.parse_args()
    inputs = arguments.inputs
    if (arguments.model / "retriever.json").is_file():
        sentences, inputs = read_sentences(inputs)
        answer = ranker(arguments.model, sentences, arguments.top)
    elif (arguments.model / "committee.json").is_file():
        answer = classifier(arguments.model)
    else:
        raise ValueError(
            f"{arguments.model} holds no committee.json and no retriever.json; `make repro` writes "
            "such folders in data/results/tiny/committees/ and data/results/tiny/clip_vip/"
        )
    inside = (sorted(path.iterdir()) if path.is_dir() else [path] for path in inputs)
    taken = set(arguments.inputs) - set(inputs)  # the file with the sentences
    files, failed = [path for paths in inside for path in paths if path not in taken and not path.is_dir()], 0
    for path in files:
        try:
            lines = [{"input": str(path)} | found for found in answer(path)]
        except ValueError as error:
            print(f"no answer: {error}", file=sys.stderr)
            failed += 1
            continue
        for line in lines:
            print(json.dumps(line) if arguments.json else "  ".join(f"{key} {value}" for key, value in line.items()))
    if failed or not files:
        raise ValueError(f"{failed} of {len(files)} files could not be answered{', see above' if failed else ''}")


if __name__ == "__main__":
    run_stage(main)
