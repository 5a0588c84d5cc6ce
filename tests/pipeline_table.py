"""Writes docs/pipelines.md from the table of tiny denoisers: `python tests/pipeline_table.py` with `src` on the path."""

from pathlib import Path

from tiny_denoisers import TINY, Tiny

PAGE = Path(__file__).parents[1] / "docs" / "pipelines.md"

# Pipelines of diffusers 0.42 for video by the class of their denoiser; M stands for Modular, AD for AnimateDiff.
PIPELINES = {
    "AllegroTransformer3DModel": "Allegro",
    "AnyFlowFARTransformer3DModel": "AnyFlowFAR",
    "AnyFlowTransformer3DModel": "AnyFlow",
    "ChronoEditTransformer3DModel": "ChronoEdit",
    "CogVideoXTransformer3DModel": "CogVideoX CogVideoXFunControl CogVideoXImageToVideo CogVideoXVideoToVideo",
    "ConsisIDTransformer3DModel": "ConsisID",
    "Cosmos3OmniTransformer": "Cosmos3Omni Cosmos3OmniModular Cosmos3DistilledModular",
    "CosmosTransformer3DModel": "Cosmos2_5_PredictBase Cosmos2_5_Transfer Cosmos2TextToImage Cosmos2VideoToWorld "
    "CosmosTextToWorld CosmosVideoToWorld",
    "EasyAnimateTransformer3DModel": "EasyAnimate EasyAnimateControl EasyAnimateInpaint",
    "HeliosTransformer3DModel": "Helios HeliosPyramid HeliosModular HeliosPyramidModular "
    "HeliosPyramidDistilledModular",
    "HunyuanVideo15Transformer3DModel": "HunyuanVideo15 HunyuanVideo15ImageToVideo HunyuanVideo15Modular",
    "HunyuanVideoFramepackTransformer3DModel": "HunyuanVideoFramepack",
    "HunyuanVideoTransformer3DModel": "HunyuanVideo HunyuanVideoImageToVideo HunyuanSkyreelsImageToVideo",
    "I2VGenXLUNet": "I2VGenXL",
    "Kandinsky5Transformer3DModel": "Kandinsky5T2V Kandinsky5I2V Kandinsky5T2I Kandinsky5I2I",
    "Kandinsky6Transformer3DModel": "Kandinsky6TI2VA",
    "LTX2VideoTransformer3DModel": "LTX2 LTX2Condition LTX2DFR LTX2DFRTemporalRefine LTX2HDR LTX2InContext "
    "LTX2ImageToVideo LTX2Modular LTX25Modular EchoModular",
    "LTXVideoTransformer3DModel": "LTX LTXCondition LTXI2VLongMultiPrompt LTXImageToVideo LTXModular",
    "LatteTransformer3DModel": "Latte",
    "MiniMaxH3Transformer3DModel": "MiniMaxH3Modular",
    "MochiTransformer3DModel": "Mochi",
    "MotifVideoTransformer3DModel": "MotifVideo MotifVideoImage2Video",
    "SanaVideoTransformer3DModel": "SanaVideo SanaImageToVideo",
    "SanaWMLTX2RefinerTransformer3DModel": "SanaWMLTX2Refiner",
    "SanaWMTransformer3DModel": "SanaWM",
    "SkyReelsV2Transformer3DModel": "SkyReelsV2 SkyReelsV2DiffusionForcing SkyReelsV2DiffusionForcingImageToVideo "
    "SkyReelsV2DiffusionForcingVideoToVideo SkyReelsV2ImageToVideo",
    "UNet2DConditionModel": "TextToVideoZero TextToVideoZeroSDXL",
    "UNet3DConditionModel": "TextToVideoSD VideoToVideoSD",
    "UNetMotionModel": "AnimateDiff AnimateDiffControlNet AnimateDiffSDXL AnimateDiffSparseControlNet "
    "AnimateDiffVideoToVideo AnimateDiffVideoToVideoControlNet PIA AnimateDiffPAG",
    "UNetSpatioTemporalConditionModel": "StableVideoDiffusion",
    "WanAnimate2Transformer3DModel": "WanAnimate2Modular WanAnimate2DistilledModular",
    "WanAnimateTransformer3DModel": "WanAnimate",
    "WanTransformer3DModel": "LucyEdit Wan WanImageToVideo WanVideoToVideo WanModular WanImage2VideoModular "
    "Wan22Modular Wan22Image2VideoModular",
    "WanVACETransformer3DModel": "WanVACE Wan22VaceModular",
}
# Run as a whole, through their own call, by the tests of the recorder, the builder and the verbs.
WHOLE = {"Wan", "WanImageToVideo"}
# Text that enters beside the denoiser, or a defect of diffusers 0.42.
BESIDE = {
    "AnimateDiffControlNet": "open: `controlnet` reads the prompt too",
    "AnimateDiffSparseControlNet": "open: `controlnet` reads the prompt too",
    "AnimateDiffVideoToVideoControlNet": "open: `controlnet` reads the prompt too",
    "Cosmos2_5_Transfer": "open: `controlnet` reads the prompt too",
    "EasyAnimateControl": "diffusers 0.42.1 raises TypeError on every call",
    "Kandinsky5I2I": "not run: needs a real Qwen2-VL processor",
    "StableVideoDiffusion": "takes no prompt; only hidden sites",
    **{
        f"LTX2{kind}": "the `connectors` before the denoiser are not edited; what they pass on is"
        for kind in ("", "Condition", "DFR", "DFRTemporalRefine", "HDR", "InContext", "ImageToVideo", "Modular")
    },
    "LTX25Modular": "the `connectors` before the denoiser are not edited; what they pass on is",
    "EchoModular": "the `connectors` before the denoiser are not edited; what they pass on is",
}
