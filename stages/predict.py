"""Classify image files or arrays with an exported committee, and say which member answered and at what cost.

    python -m stages.predict data/results/tiny/committees-digits three.png rows.npy

An array file holds images as the data set stores them: (rows, height, width) or (rows, height, width, channels). Image
files are read in the committee's colours and size.
"""

import argparse
import json
from pathlib import Path

import numpy as np

from stages.plan import run_stage


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


def main() -> None:
    """Load the committee, answer each image, print a line for each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("committee", type=Path, help="folder with committee.json and committee.safetensors")
    parser.add_argument("inputs", type=Path, nargs="+", help="image files, or .npy files of many images")
    parser.add_argument("--json", action="store_true", help="one JSON object per image")
    arguments = parser.parse_args()
    if not (arguments.committee / "committee.json").is_file():
        raise ValueError(
            f"{arguments.committee} holds no committee.json; `make repro` writes data/results/tiny/committees-*"
        )

    import torch

    from lightning_modules.layers.committee import Committee
    from lightning_modules.tasks.members import rebuild

    record = json.loads((arguments.committee / "committee.json").read_text())
    committee = Committee.load(arguments.committee, rebuild(record))
    for path in arguments.inputs:
        images = torch.from_numpy(read_images(path, tuple(record["images"]["shape"]), record["images"]["scale"]))
        with torch.inference_mode():
            answer = committee(images)
        for row, (shares, stage, macs) in enumerate(zip(*(x.tolist() for x in answer), strict=True)):
            best = int(np.argmax(shares))
            name = record["members"][stage]["name"]
            line = {"input": str(path), "row": row, "class": best, "probability": round(shares[best], 6)}
            line |= {"answered_by": name, "members_asked": stage + 1, "macs": macs}
            print(json.dumps(line) if arguments.json else "  ".join(f"{key} {value}" for key, value in line.items()))


if __name__ == "__main__":
    run_stage(main)
