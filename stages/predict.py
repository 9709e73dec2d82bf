"""Use an exported model: a committee classifies images, a retriever ranks sentences for videos.

    python -m stages.predict data/results/tiny/committees/committees-digits three.png rows.npy
    python -m stages.predict data/results/tiny/clip_vip/clip_vip-world_video_text folder-of-videos sentences.txt

A committee says which member answered and at what cost. An array file holds images as the data set stores them: (rows,
height, width) or (rows, height, width, channels). Image files are read in the committee's colours and size.

A retriever takes video files and folders of them, and one text file with a sentence in each line; of each video it
prints the best sentences.
"""

import argparse
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from stages.command import run_stage


def read_images(path: Path, shape: tuple[int, int, int], scale: float) -> np.ndarray:
    """Images of a file as stored pixels, (rows, channels, height, width) float32.

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
        ValueError: there is not one text file with sentences, or no video.
    """
    lists = [path for path in inputs if path.suffix == ".txt"]
    sentences = [line for path in lists for line in map(str.strip, path.read_text().splitlines()) if line]
    found = (sorted(path.iterdir()) if path.is_dir() else [path] for path in inputs if path not in lists)
    videos = [path for paths in found for path in paths if path.is_file() and path.suffix != ".txt"]
    if len(lists) != 1 or not sentences or not videos:
        raise ValueError(
            f"got {len(videos)} videos, {len(lists)} text files and {len(sentences)} sentences; expected videos or a "
            "folder of them, and one .txt file with a sentence in each line"
        )
    from lightning_modules.clip_vip.retriever import Retriever

    retriever = Retriever.load(folder)
    for path in videos:
        for rank, (sentence, similarity) in enumerate(retriever.rank(path, sentences)[:top], start=1):
            yield {"input": str(path), "rank": rank, "similarity": round(similarity, 6), "sentence": sentence}


def main() -> None:
    """Load the model, answer each input, print a line for each answer."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "model", type=Path, help="folder with committee.json or retriever.json, and the weights beside it"
    )
    parser.add_argument("inputs", type=Path, nargs="+", help="images or .npy files; or videos, folders and a .txt file")
    parser.add_argument("--top", type=int, default=3, help="sentences for each video (3)")
    parser.add_argument("--json", action="store_true", help="one JSON object per answer")
    arguments = parser.parse_args()
    if (arguments.model / "retriever.json").is_file():
        answers = retrieve(arguments.model, arguments.inputs, arguments.top)
    elif (arguments.model / "committee.json").is_file():
        answers = classify(arguments.model, arguments.inputs)
    else:
        raise ValueError(
            f"{arguments.model} holds no committee.json and no retriever.json; `make repro` writes "
            "data/results/tiny/committees/ and clip_vip/"
        )
    for line in answers:
        print(json.dumps(line) if arguments.json else "  ".join(f"{key} {value}" for key, value in line.items()))


if __name__ == "__main__":
    run_stage(main)
