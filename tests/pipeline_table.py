"""Writes docs/pipelines.md from the table of tiny denoisers: `PYTHONPATH=src python tests/pipeline_table.py`."""

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
    "HeliosTransformer3DModel": "Helios HeliosPyramid HeliosModular HeliosPyramidModular HeliosPyramidDistilledModular",
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

HEAD = """# Denoisers and pipelines

This page is written by `tests/pipeline_table.py` from the table that `tests/test_denoisers.py` runs, and a test
compares them. "Tested" means: on a tiny model with random weights, in float32, on a CPU, with diffusers 0.42.

## 1. Denoisers

For each of the {classes} classes below ({rows} configurations) these tests pass:

- the text sites are those of the table, and measurement agrees: each reads the prompt, and not the noise but where the
  table says so; every other layer that reads the prompt alone prepares the text for a site, or is an open door;
- with all sites blind the output no longer depends on the prompt, but through the open doors of the table;
- `build_adapter` finds a planted word (cosine above 0.99), and a site no longer writes it, unless the edit of an
  earlier site has changed what it reads;
- an attached adapter with oblique random directions gives what dense matrices in the weights give, and touches nothing
  else; fused gives the same within float32 rounding; unfusing restores every bit; two adapters stack the same in any
  order; a file gives the same bits again; after unloading no hook, attribute or changed bit is left;
- hidden sites are found and read the video.

Not tested for each class: whole pipelines (section 2 says which are), half precision, quantised weights, offloading,
compilation, and LoRAs beside the adapter. Those are tested on tiny Wan pipelines, or not yet.

"Open door" is a way of the prompt to the video around all text sites: there a concept can still enter. Sites that "see
the video" read text that has met the video in an earlier block, so that their input also depends on the noise.

| denoiser | text meets video by | text sites | see the video | open doors |
|---|---|---|---|---|
"""
NOTES = """
- **One stream** (CogVideoX, ConsisID, MiniMax H3): no Linear in the blocks reads text alone. The site is the text
  projection in front of them; to edit inside of the blocks, select `"hidden"` sites, which read text and video.
- **Two streams** (HunyuanVideo, Mochi, EasyAnimate, Motif): after the first block the text tokens have seen the video.
- **Two towers** (Cosmos 3): the text has a tower of its own, which the video reads and which never sees the video.
- **Image keys** (`add_k_proj` in Wan, SkyReels, ChronoEdit; `k_img` in Cosmos) read a picture and are no text sites.
  With them Wan takes the last 512 tokens for text: build with the default `max_sequence_length`.
- I2VGen-XL joins text and image tokens before its keys and values: a text site reads both there.
- Stable Video Diffusion reads an image and no prompt: `find_sites(pipe, "text")` raises an error that says so.
- SANA-WM's refiner keeps the audio layers of LTX-2 and never calls them: they are no sites.
- IP-Adapters keep their projections inside of attention processors: they are not found and not edited.

## 2. Pipelines

Every video pipeline of diffusers 0.42 with the class of its denoiser. "denoiser" means that only section 1 was tested
for it; "whole" that its own call was run by the tests too.

| pipeline | denoiser | tested | remarks |
|---|---|---|---|
"""
TAIL = """
## 3. A denoiser that is not in diffusers

All functions ask a pipeline for little: `components`, a mapping with an `nn.Module` named `transformer` or `unet`, and,
to build, a call that takes `prompt` and `generator` and runs it. So any model of Linear layers works, with a few lines
around it; `tests/test_any_module.py` does this for a model like STDiT, the denoiser of Open-Sora:

```python
class Wrapped:
    def __init__(self, model, run):
        self.components, self.run = {"transformer": model}, run

    def __call__(self, prompt, generator):
        return self.run(self.components["transformer"], prompt, generator)


pipe = Wrapped(model, run)
adapter = build_adapter(pipe, concept, BuildConfig(batch_size=1))
load_unlearning_adapter(pipe, adapter)
```

With `batch_size=1` the call gets one prompt as a text, otherwise a list of prompts and a list of generators. Sites
whose names the finder does not know are measured: inputs that change with the prompt and not with the noise.
"""


def _denoiser_row(tiny: Tiny) -> str:
    sites = "<br>".join(f"`{site}`" for site in tiny.sites.split()) or "none"
    seeing = "from the second block on" if tiny.mixed else "none" if tiny.sites else "-"
    doors = tiny.doors or ("none" if tiny.sites else "-")
    return f"| {tiny.name} | {tiny.attention} | {sites} | {seeing} | {doors} |\n"


def pipelines() -> list[tuple[str, str]]:
    """Name of each pipeline class, less "Pipeline", and class of its denoiser."""
    return [(name, denoiser) for denoiser, names in PIPELINES.items() for name in names.split()]


def page() -> str:
    """Return docs/pipelines.md."""
    head = HEAD.format(classes=len({tiny.model for tiny in TINY}), rows=len(TINY))
    rows = [
        f"| {name}Pipeline | {denoiser} | {'whole' if name in WHOLE else 'denoiser'} | {BESIDE.get(name, '')} |\n"
        for name, denoiser in sorted(pipelines(), key=lambda row: row[0].lower())
    ]
    rows = [row.replace("SanaWMLTX2RefinerPipeline", "SanaWMLTX2Refiner").replace("|  |", "| |") for row in rows]
    return head + "".join(map(_denoiser_row, TINY)) + NOTES + "".join(rows) + TAIL


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
