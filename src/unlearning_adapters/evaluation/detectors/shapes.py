"""ShapeWorld's judge as a detector: it labels each factor, and rejects clips that show no scene."""

from unlearning_adapters.clips import Clip
from unlearning_adapters.shapeworld.world.judge import judge_clip

from .detector import Detection, Detector, detector_factory


@detector_factory
def shapes() -> Detector:
    """Return the detector of colour, shape, motion and background in the embedded world."""

    def judge(frames: Clip) -> Detection:
        verdict = judge_clip(frames)
        if not verdict.valid:
            return Detection(valid=False, reason=verdict.reason)
        return Detection(labels=verdict.factors, valid=True, motion=verdict.displacement)

    return Detector("shapes", judge, "concept", version="1", settings={"channels": "RGB"})
