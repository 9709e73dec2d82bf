"""The sound of video files, beside the frames that are shown of them (PyAV): `read_sound`."""

from pathlib import Path

import numpy as np
from jaxtyping import Int16

from lightning_modules.datasets.video.files import BrokenVideo

MISSING = (
    0.1  # share of a clip's sound that may be missing at its end, where it is silent then: coders cut off a little
)


def read_sound(path: Path, start: float, samples: int, rate: int) -> Int16[np.ndarray, " samples"]:
    """The sound of a file's best audio stream from a second on, as one channel.

    Args:
        path: of the file.
        start: seconds after the first frame of its video.
        samples: that are wanted.
        rate: samples a second to which the sound is brought.

    Raises:
        BrokenVideo: it is not there, has no sound or ends before the clip does, or its sound cannot be decoded.
    """
    import av

    try:
        with av.open(f"file:{path}") as container:
            stream, video = container.streams.best("audio"), container.streams.best("video")
            if stream is None:
                raise BrokenVideo(f"{path} has no sound")
            stream.codec_context.thread_count = 1
            begins = start if video is None else start + float((video.start_time or 0) * video.time_base)
            heard, first = _decoded(container, stream, begins, samples, rate)
    except (av.FFmpegError, OSError) as error:
        raise BrokenVideo(f"the sound of {path} cannot be decoded: {error}") from error
    skipped = round((begins - first) * rate)
    found = np.pad(heard, (max(-skipped, 0), 0))[max(skipped, 0) :][:samples]
    if len(found) < (1 - MISSING) * samples:
        raise BrokenVideo(f"the sound of {path} ends before the clip does: {len(found)} of {samples} samples are there")
    return np.pad(found, (0, samples - len(found)))


def _decoded(
    container: object, stream: object, begins: float, samples: int, rate: int
) -> tuple[Int16[np.ndarray, " heard"], float]:
    """All sound from shortly before a second on, until there are enough samples, and the second at which it begins."""
    import av

    container.seek(max(0, int((begins - 0.5) * av.time_base)))
    resampler = av.AudioResampler(format="s16", layout="mono", rate=rate)
    parts, first, total = [], None, 0
    for frame in container.decode(stream):
        if frame.time is None or (first is None and frame.time + frame.samples / frame.sample_rate <= begins - 0.25):
            continue
        first = frame.time if first is None else first
        for part in resampler.resample(frame):
            parts.append(part.to_ndarray()[0])
            total += len(parts[-1])
        if first + total / rate > begins + samples / rate:
            break
    if first is None:
        return np.zeros(0, np.int16), begins
    return np.concatenate([*parts, *(part.to_ndarray()[0] for part in resampler.resample(None))]), first
