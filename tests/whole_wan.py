"""Tiny whole pipelines of the Wan family."""

from tiny import CALL, tiny_wan_image_pipeline, tiny_wan_pipeline
from whole import Whole

CASES = (
    Whole("WanPipeline", "Wan", tiny_wan_pipeline, CALL),
    Whole("WanPipeline", "Wan", lambda: tiny_wan_pipeline(two_denoisers=True), CALL, variant="two denoisers"),
    Whole("WanImageToVideoPipeline", "Wan", tiny_wan_image_pipeline, CALL, takes="image", pictures=True),
)
