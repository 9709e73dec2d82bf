"""Use a trained model: a committee classifies images, a retriever ranks sentences for videos.

    python -m stages.predict data/results/tiny/committees/committees-digits three.png rows.npy
    python -m stages.predict data/results/tiny/clip_vip/clip_vip-world_video_text folder-of-videos sentences.txt

For each image, a committee prints the class, which member answered, and the cost in MACs. An array file (.npy) has
images in the form of the data set: (rows, height, width) or (rows, height, width, channels). Image files are converted
to the committee's size, and to grey or RGB.

A retriever takes video files or folders of them, and one text file with one sentence per line. For each video it prints
the sentences that fit best.
"""

import argparse
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from stages.command import run_stage


def read_images(path: Path, shape: tuple[int, int, int], scale: float) -> np.ndarray:
    """Images of a file as pixels in the range of the data set, (rows, channels, height, width) float32.

    Raises:
        ValueError: the file is no image or array, or the array's images have another shape.
    """
    channels, height, width = shape
    if path.suffix == ".npy":
        images = np.load(path, allow_pickle=False)
        images = images[..., None] if images.ndim == 3 else images
        if images.ndim != 4 or images.shape[1:] != (height, width, channels):
            expected = f"(rows, {height}, {width}, {channels})"
            raise ValueError(f"{path} holds an array of shape {images.shape}; the committee expects {expected}")
        return images.transpose(0, 3, 1, 2).astype(np.float32)
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path) as image:
            pixels = np.asarray(image.convert("L" if channels == 1 else "RGB").resize((width, height)), np.float32)
    except UnidentifiedImageError:
        raise ValueError(f"{path} is neither an image that Pillow reads nor an .npy file") from None
    return pixels.reshape(1, height, width, channels).transpose(0, 3, 1, 2) * (scale / 255)


def classify(folder: Path, inputs: list[Path]) -> Iterator[dict]:
    """What a committee says of each image."""
    import torch

    from lightning_modules.committees.network import Committee
    from lightning_modules.ensembling.members import rebuild

    record = json.loads((folder / "committee.json").read_text())
    committee = Committee.load(folder, rebuild(record))
    for path in inputs:
        images = torch.from_numpy(read_images(path, tuple(record["images"]["shape"]), record["images"]["scale"]))
        with torch.inference_mode():
            answer = committee(images)
        for row, (shares, stage, macs) in enumerate(zip(*(x.tolist() for x in answer), strict=True)):
            best = int(np.argmax(shares))
            name = record["members"][stage]["name"]
            line = {"input": str(path), "row": row, "class": best, "probability": round(shares[best], 6)}
            yield line | {"answered_by": name, "members_asked": stage + 1, "macs": macs}


def retrieve(folder: Path, inputs: list[Path], top: int) -> Iterator[dict]:
    """The best sentences of each video.

    Raises:
        ValueError: there is no video, or not exactly one text file with sentences.
    """
    lists = [path for path in inputs if path.suffix == ".txt"]
    sentences = [line for path in lists for line in map(str.strip, path.read_text().splitlines()) if line]
    found = (sorted(path.iterdir()) if path.is_dir() else [path] for path in inputs if path not in lists)
    videos = [path for paths in found for path in paths if path.is_file() and path.suffix != ".txt"]
    if len(lists) != 1 or not sentences or not videos:
        raise ValueError(
            f"got {len(videos)} videos, {len(lists)} text files and {len(sentences)} sentences; expected videos or a "
            "folder of them, and one .txt file with one sentence per line"
        )
    from lightning_modules.clip_vip.retriever import Retriever

    retriever = Retriever.load(folder)
    for path in videos:
        for rank, (sentence, similarity) in enumerate(retriever.rank(path, sentences)[:top], start=1):
            yield {"input": str(path), "rank": rank, "similarity": round(similarity, 6), "sentence": sentence}


def main() -> None:
    """Load the model, answer each input, print a line for each answer."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="folder with committee.json or retriever.json, and the weights")
    parser.add_argument("inputs", type=Path, nargs="+", help="images or .npy files; or videos, folders and a .txt file")
    parser.add_argument("--top", type=int, default=3, help="number of sentences for each video (default: 3)")
    parser.add_argument("--json", action="store_true", help="print one JSON object for each answer")
    arguments = parser.parse_args()
    if (arguments.model / "retriever.json").is_file():
        answers = retrieve(arguments.model, arguments.inputs, arguments.top)
    elif (arguments.model / "committee.json").is_file():
        answers = classify(arguments.model, arguments.inputs)
    else:
        raise ValueError(
            f"{arguments.model} holds no committee.json and no retriever.json; `make repro` writes "
            "such folders in data/results/tiny/committees/ and data/results/tiny/clip_vip/"
        )
    for line in answers:
        print(json.dumps(line) if arguments.json else "  ".join(f"{key} {value}" for key, value in line.items()))


if __name__ == "__main__":
    run_stage(main)
