"""Writes docs/pipelines.md, and the table that `unlearn pipelines` shows, from the tables of the tests.

The tables are those of tiny denoisers and of tiny whole pipelines, so that no page can say more than the tests do.
To write both files: `PYTHONPATH=src python tests/support/pipeline_table.py`.
"""

from __future__ import annotations

import importlib
import json
from functools import cache
from pathlib import Path
from typing import Any

import diffusers
import picture_sites
from one_line import one_line
from tiny_denoisers import TINY, Tiny

from whole import Broken, Whole

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "pipelines.md"
DATA = ROOT / "src" / "unlearning_adapters" / "cli" / "pipelines.json"

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
# What reads the prompt, or holds text, beside the denoiser's own sites: edited, or an open door.
BESIDE = {
    **dict.fromkeys(
        ("AnimateDiffControlNet", "AnimateDiffSparseControlNet", "AnimateDiffVideoToVideoControlNet",
         "Cosmos2_5_Transfer"),
        "`controlnet` reads the prompt too",
    ),
    **{
        name: "the `connectors` before the denoiser are not edited, what they pass on is"
        for name in PIPELINES["LTX2VideoTransformer3DModel"].split()
    },
    **dict.fromkeys(("AnimateDiff", "AnimateDiffSDXL", "AnimateDiffPAG", "PIA"), "IP-Adapters are not edited"),
    "HunyuanVideoImageToVideo": "the picture is part of the text encoder's prompt",
}  # fmt: skip
EDITED = {
    "WanVACE": "the VACE blocks read the prompt and are edited",
    "Wan22VaceModular": "the VACE blocks read the prompt and are edited",
    **dict.fromkeys(PIPELINES["LTX2VideoTransformer3DModel"].split(), "the sound's cross-attention is edited too"),
    "Kandinsky6TI2VA": "the sound's cross-attention is edited too",
    "StableVideoDiffusion": "takes no prompt; image sites",
}
# Two denoisers, both edited.
TWO = {"Wan", "WanImageToVideo", "WanVACE", "LucyEdit", "Wan22Modular", "Wan22Image2VideoModular", "Wan22VaceModular"}

HEAD = """# Denoisers and pipelines

This page is written by `tests/support/pipeline_table.py` from the table that `tests/pipelines/test_denoisers.py` runs.
A test compares them. "Tested" means: on a tiny model with random weights, in float32, on a CPU, with diffusers 0.42.

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

Not tested for each class: half precision, quantised weights, offloading,
compilation, and LoRAs beside the adapter. Those are tested on tiny Wan pipelines, or not yet.

"Open door" is a way of the prompt to the video around all text sites: there a concept can still enter. Sites that "see
the video" read text that has met the video in an earlier block, so that their input also depends on the noise.

| denoiser | text meets video by | text sites | see the video | open doors |
|---|---|---|---|---|
"""
NOTES = """
- **One stream** (CogVideoX, ConsisID, MiniMax H3): no Linear in the blocks reads text alone. The site is the text
  projection in front of them: `patch_embed.text_proj` (CogVideoX, ConsisID), `context_embedder` (MiniMax H3). To edit
  inside of the blocks, select `"hidden"` sites, which read text and video.
- **Two streams, then one**: the single blocks of HunyuanVideo and Motif, and the shared ones of EasyAnimate, join text
  and video, so there the projection in front is a site as well: `context_embedder.proj_in` (HunyuanVideo, FramePack),
  `context_embedder.linear_1` (Motif), `text_proj` and `text_proj_t5` (EasyAnimate).
- **Two streams** (HunyuanVideo, Mochi, EasyAnimate, Motif): after the first block the text tokens have seen the video.
- **Two towers** (Cosmos 3): the text has a tower of its own, which the video reads and which never sees the video.
- **Image keys** (`add_k_proj` in Wan, SkyReels, ChronoEdit; `k_img` in Cosmos) read a picture and are no text sites.
  With them Wan takes the last 512 tokens for text: build with the default `max_sequence_length`.
- I2VGen-XL joins text and image tokens before its keys and values: a text site reads both there.
- Stable Video Diffusion reads an image and no prompt: `find_sites(pipe, "text")` raises an error that says so.
- `"text-projection"` is the layer in front of all blocks that reads the text encoder's rows first, such as
  `condition_embedder.text_embedder.linear_1` in Wan and `caption_projection.linear_1` in LTX. The UNets, and Cosmos
  without a projection, have none. Pooled text does not pass it: in HunyuanVideo and Mochi that is a further open door.
- SANA-WM's refiner keeps the audio layers of LTX-2 and never calls them: they are no sites.
- IP-Adapters keep their projections inside of attention processors: they are not found and not edited.

- **Why the projection**: a layer that reads text and video at once would apply an edit to the video's own tokens, too.
  In front of the blocks the prompt is still alone, so an edit there touches nothing else.
- **Steps**: what text sites read depends on the timestep in LTX-2.3 (`prompt_scale_shift_table`), in Kandinsky (text
  blocks) and in joint attention (HunyuanVideo). The builder measures it, and records such sites in three steps.

## 2. Pipelines

Every video pipeline of diffusers {diffusers}. `unlearn pipelines` shows the same table.

- **whole**: the tests run a tiny pipeline of this class through its own call. The adapter is built from pairs of
  prompts (and of pictures, where it takes one) and finds a planted word. It takes the word out of the result: the
  prompt gives nearly what the safe prompt gives, and an unrelated prompt nearly what it gave. Attached equals fused
  within rounding, unfusing restores every bit, a file gives the same bits, two adapters stack, nothing is left behind.
- **denoiser**: only section 1 was tested for it.
- **fails in diffusers**: its call fails without an adapter too, by the error that is named; section 1 was tested.
- **builds with one line**: `build_adapter(pipe, concept)` without further arguments, as in README, on a tiny pipeline.
  The builder finds sizes, steps and batches that the class accepts. "Needs" names the arguments of its call that no
  build can make up: give them as `call_kwargs={...}`, or `unlearn build --call NAME=VALUE` (pictures and clips too).

Two classes fail in diffusers {diffusers} where the adapter does not:

- Stock `load_lora_weights` on WanAnimate2ModularPipeline raises AttributeError ('FrozenDict' object has no attribute
  'image_dim'), with any LoRA. `load_unlearning_adapter` reads the file there.
- Cosmos2_5_TransferPipeline calls `transforms.functional.resize` of torchvision. Without torchvision it builds, if that
  one function has a stand-in (`tests/whole/test_one_line.py`).

What a pipeline takes besides the prompt is a door of its own: a concept that enters by a picture is not what a text
site reads. "Open" names the ways of the prompt, or of text in other forms, around the edited layers.

| pipeline | denoiser | takes, beside a prompt | builds with one line | tested | open doors | remarks |
|---|---|---|---|---|---|---|
"""
TAIL = """
## 3. A denoiser that is not in diffusers

`wrap_denoiser` makes a pipeline of any `nn.Module` with Linear layers and a callable that runs it on prompts. Building,
attaching, fusing, stacking and files then work as on a pipeline of diffusers, and the verbs are methods of it. For a
model like STDiT, the denoiser of Open-Sora, as `tests/runtime/test_any_module.py` has it:

```python
def run(model, prompts, generators):  # a list of prompts, and the source of the noise of each
    text = torch.cat([encode(prompt) for prompt in prompts])
    noise = torch.cat([torch.randn(1, 4, 16, 32, 32, generator=generator) for generator in generators])
    with torch.no_grad():
        return model(noise, torch.full((len(prompts),), 999.0), text)


pipe = ua.wrap_denoiser(stdit, run, base_model="org/open-video")
adapter = ua.build_adapter(pipe, concept)
pipe.load_unlearning_adapter(adapter)  # acts wherever the module is used
```

One call of the module, without guidance, is enough. Sites whose names are not known are measured: inputs that change
with the prompt and not with the noise. A parameter `images` of the callable gets the pictures of the pairs; further
parameters need defaults, and `call_kwargs` reaches them.

## 4. Pictures

A pair may hold pictures, with words or without. By default (`BuildConfig(sites=None)`) a build takes text sites if the
prompts of the pairs differ, and image sites if their pictures differ: the layers that read a picture alone.

| denoiser | image sites | the picture enters elsewhere too |
|---|---|---|
"""
PICTURES = """
For each row structure and measurement agree (an input that changes with the picture, and neither with the prompt nor
with the noise), a build learns what the site reads, and attached, fused and unfused edits are those of dense matrices.

What is removed, on tiny models in which a red cell of the picture is planted (`tests/building/test_image_concepts.py`;
shares of the distance between the videos of a picture with red cells and of the same picture with blue ones):

- Wan 2.1 and Stable Video Diffusion, with image tokens as the only way in: the distance that is left is 0.03 and 0.004;
  the video of a neutral picture moves by 0.07 and 0.08, with `epsilon` 0.001 and 0.0001. With the default, 0.001,
  0.07 is left of the latter, and the neutral picture moves by 0.15. A text adapter leaves 1.00 on Wan.
- **The real models also read the picture from its latents**, and image sites do not see those: select
  `("image", "hidden")`. On Wan 2.1 with both ways open the video then tells red from blue 88 % less in the frames
  that are made, and 2 % less in the frame that is given; with image sites alone 83 % and 2 % less.
- Where the picture enters through latents alone (image-to-video of Wan 2.2, CogVideoX, LTX, Kandinsky 5, SANA, Helios)
  select `"hidden"`; a build whose pairs differ in pictures warns where there is no image site.
- Wan 2.2, latents alone, `sites="hidden"`: with the edit the video tells red from blue 42 % less in the frames that are
  made, and 1 % less in the frame that is given, whose latents pass around all sites on the residual stream; the
  neutral picture's video moves by 0.36 and 0.03. With all Linear layers of the blocks and the last one it is 88 % and
  85 % less, but the neutral picture's video moves by 2.7 and 0.5. So an edit of the denoiser is no sure protection
  against a picture that shows the concept already: check pictures before they enter.
- HunyuanVideo image-to-video and Kandinsky 5 image-to-image put the picture among the tokens of the prompt: text sites
  read it there.
"""


def _denoiser_row(tiny: Tiny) -> str:
    sites = "<br>".join(f"`{site}`" for site in tiny.sites.split()) or "none"
    seeing = "from the second block on" if tiny.mixed else "none" if tiny.sites else "-"
    doors = tiny.doors or ("none" if tiny.sites else "-")
    return f"| {tiny.name} | {tiny.attention} | {sites} | {seeing} | {doors} |\n"


def pipelines() -> list[tuple[str, str]]:
    """Name of each pipeline class, less "Pipeline", and class of its denoiser."""
    return [(name, denoiser) for denoiser, names in PIPELINES.items() for name in names.split()]


@cache
def cases() -> tuple[Any, ...]:
    """The cases of all modules of the folder `cases`."""
    names = sorted(path.stem for path in (Path(__file__).parent / "cases").glob("*.py"))
    return tuple(case for name in names for case in importlib.import_module(f"cases.{name}").CASES)


def class_name(pipeline: str) -> str:
    """Name of the class of a pipeline of `PIPELINES`."""
    return pipeline if pipeline.endswith("Refiner") else f"{pipeline}Pipeline"


def rows() -> list[dict[str, Any]]:
    """One row of plain values for each pipeline class: what it edits, what stays open, and how it was tested."""
    return [_row(*item) for item in sorted(pipelines(), key=lambda item: item[0].lower())]


def _row(name: str, denoiser: str) -> dict[str, Any]:
    own = [case for case in cases() if case.pipeline == class_name(name)]
    whole = [case for case in own if isinstance(case, Whole)]
    broken = [case for case in own if isinstance(case, Broken)]
    kinds = [tiny for tiny in TINY if tiny.model == denoiser]
    kind = next((tiny for tiny in kinds if tiny.variant == "SDXL" and "SDXL" in name), kinds[0])
    remarks = [case.remarks for case in own if case.remarks]
    if not own:
        remarks.append("not run as a whole")
    return {
        "pipeline": class_name(name),
        "denoiser": denoiser,
        "components": ["transformer", "transformer_2"] if name in TWO else [kind.component],
        "attention": kind.attention,
        "text_sites": sorted({site for tiny in kinds for site in tiny.sites.split()}),
        "open_doors": [door for door in (*kind.doors.split("; "), BESIDE.get(name)) if door],
        "tested": "whole" if whole else "fails in diffusers" if broken else "denoiser",
        "variants": [case.variant or "plain" for case in whole] if any(case.variant for case in whole) else [],
        "takes": "; ".join(dict.fromkeys(case.takes for case in whole if case.takes)),
        "error": broken[0].text if broken else "",
        "remarks": "; ".join(dict.fromkeys([*([EDITED[name]] if name in EDITED else []), *remarks])),
    }


def _pipeline_row(row: dict[str, Any]) -> str:
    variants = f" ({', '.join(row['variants'])})" if row["variants"] else ""
    cells = (
        row["pipeline"], row["denoiser"], row["takes"], one_line(row["pipeline"], row["tested"]),
        row["tested"] + variants,
        "; ".join(row["open_doors"]) or "none", row["remarks"],
    )  # fmt: skip
    return "| " + " | ".join(cells).replace("|  |", "| |").replace("|  |", "| |") + " |\n"


def page() -> str:
    """Return docs/pipelines.md."""
    head = HEAD.format(classes=len({tiny.model for tiny in TINY}), rows=len(TINY))
    middle = NOTES.replace("{diffusers}", diffusers.__version__)
    return (
        head
        + "".join(map(_denoiser_row, TINY))
        + middle
        + "".join(map(_pipeline_row, rows()))
        + TAIL
        + picture_sites.rows()
        + PICTURES
    )


def data() -> str:
    """Return the table that ships with the package, as JSON, one pipeline per line."""
    lines = ",\n".join("  " + json.dumps(row, ensure_ascii=False) for row in rows())
    return f'{{"diffusers": "{diffusers.__version__}", "pipelines": [\n{lines}\n]}}\n'


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    DATA.write_text(data(), encoding="utf-8")
