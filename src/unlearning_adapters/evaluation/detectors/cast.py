"""CastWorld's judge as a detector: it labels each factor, and rejects clips that show no scene."""

from unlearning_adapters.clips import Clip
from unlearning_adapters.shapeworld.cast.judge import judge_cast_clip

from .detector import Detection, Detector, detector_factory


@detector_factory
def cast() -> Detector:
    """Return the detector of character, motion, setting, style, emblem, object and things in CastWorld."""

    def judge(frames: Clip) -> Detection:
        reading = judge_cast_clip(frames)
        if not reading.valid:
            return Detection(valid=False, reason=reading.reason)
        return Detection(labels=reading.factors, valid=True)

    return Detector("cast", judge, "concept", version="1", settings={"channels": "RGB"})
