"""Video files as clips of high and low resolution, as HD-VILA shows them; texts and labels of `annotated_videos`."""

class HybridClips:
    """Batches of `middle`, uint8 (batch clips 3 height width), and `neighbours`, (batch clips frames-1 3 height/4 width/4).

    Texts and labels: see `AnnotatedVideos`. How clips are taken and cut: `video.hybrid.Hybrid`.

    Args:
        clips: that training shows of a video.
        evaluation_clips: that are judged.
        frames: of a clip, the middle one included: an odd number.
        stride: frames from one to the next, at `rate`.
        rate: frames a second that a video is brought to first; null for its own.
        source_size: height and width to which a frame is brought.
        size: height and width that are cut from it, multiples of four.
        middles: `original`, or `upsampled`: see `Hybrid`.
        padded: whether frames keep their aspect, in a grey square.
        flip: share of the videos that are mirrored in training.
    """
