"""Runs inside of ComfyUI's environment: makes its own tiny models, and loads LoRA files as its node does.

python comfyui.py SOURCE JOBS.json
"""

import json
import logging
import sys
from pathlib import Path

SOURCE, JOB = sys.argv[1:3]
sys.path.insert(0, SOURCE)
sys.argv = ["comfyui", "--cpu"]

import comfy.options  # noqa: E402

comfy.options.enable_args_parsing()

import comfy.model_base  # noqa: E402
import comfy.ops  # noqa: E402
import comfy.sd  # noqa: E402
import comfy.utils  # noqa: E402
import torch  # noqa: E402
from comfy.ldm.hunyuan_video.model import HunyuanVideo  # noqa: E402
from comfy.ldm.lightricks.model import LTXVModel  # noqa: E402
from comfy.ldm.wan.model import VaceWanModel, WanModel  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402

WAN = {"dim": 256, "num_heads": 2, "ffn_dim": 320, "num_layers": 2, "text_dim": 4096}
HUNYUAN = {
    "in_channels": 16, "out_channels": 16, "patch_size": [1, 2, 2], "axes_dim": [16, 56, 56], "context_in_dim": 64,
    "hidden_size": 128, "mlp_ratio": 4.0, "num_heads": 1, "depth": 2, "theta": 256, "qkv_bias": True,
    "byt5": False, "meanflow": False,
}  # fmt: skip
MODELS = {
    "wan": (WanModel, {**WAN, "in_dim": 16}),
    "wan-image": (WanModel, {**WAN, "in_dim": 36, "model_type": "i2v"}),
    "wan-vace": (VaceWanModel, {**WAN, "in_dim": 16, "vace_layers": 1, "vace_in_dim": 96, "model_type": "vace"}),
    "hunyuan-video": (
        HunyuanVideo,
        {
            **HUNYUAN,
            "vec_in_dim": 768,
            "depth_single_blocks": 1,
            "guidance_embed": True,
            "byt5": False,
            "meanflow": False,
        },
    ),
    "ltx": (LTXVModel, {"attention_head_dim": 2, "cross_attention_dim": 64, "num_layers": 2}),
}


def make(family: str, file: str) -> None:
    """Write the weights of a tiny model of ComfyUI's own class, random where a fresh one is empty."""
    kind, config = MODELS[family]
    model = kind(**config, dtype=torch.float32, device="cpu", operations=comfy.ops.manual_cast)
    maker = torch.Generator().manual_seed(0)
    weights = {
        name: (0.1 * torch.randn(value.shape, generator=maker) + (1.0 if "norm" in name or "scale" in name else 0.0))
        for name, value in model.state_dict().items()
    }
    save_file(weights, file)


def quantise(file: str, out: str) -> None:
    """Write a model as GGUF, its matrices in Q8_0, and beside it what these numbers are, as safetensors."""
    import gguf

    kind = gguf.GGMLQuantizationType.Q8_0
    writer, exact = gguf.GGUFWriter(out, "wan"), {}
    for name, value in load_file(file).items():
        exact[name] = value
        if value.ndim == 2 and name.startswith("blocks.") and value.shape[1] % 32 == 0:
            data = gguf.quants.quantize(value.numpy(), kind)
            writer.add_tensor(name, data, raw_dtype=kind)
            exact[name] = torch.from_numpy(gguf.quants.dequantize(data, kind))
        else:
            if value.ndim > 4:
                writer.add_array(f"comfy.gguf.orig_shape.{name}", [int(size) for size in value.shape])
                value = value.flatten()
            writer.add_tensor(name, value.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    save_file(exact, f"{out}.safetensors")


class Messages(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


def apply(job: dict) -> dict:
    """Load a model and LoRA files as the node `LoraLoaderModelOnly` does; write the weights that it samples with."""
    weights = load_file(job["weights"])
    dtype = getattr(torch, job.get("dtype", "float32"))
    options = {"dtype": dtype}
    patcher = comfy.sd.load_diffusion_model_state_dict(dict(weights), model_options=options)
    kind = type(patcher.model).__name__
    before = {name: value.clone() for name, value in patcher.model.diffusion_model.state_dict().items()}
    handler = Messages()
    logging.getLogger().addHandler(handler)
    patches = 0
    for lora, strength in job["loras"]:
        patcher, _ = comfy.sd.load_lora_for_models(
            patcher, None, comfy.utils.load_torch_file(lora, safe_load=True), strength, 0.0
        )
    patches = len(patcher.patches)
    patcher.patch_model(device_to=torch.device("cpu"))
    after = {name: value.clone() for name, value in patcher.model.diffusion_model.state_dict().items()}
    save_file({name: value.contiguous() for name, value in after.items()}, job["out"])
    save_file({name: value.contiguous() for name, value in before.items()}, job["out"] + ".before")
    logging.getLogger().removeHandler(handler)
    patcher.unpatch_model()
    restored = patcher.model.diffusion_model.state_dict()
    same = all(torch.equal(_bits(value), _bits(restored[name])) for name, value in before.items())
    return {"model": kind, "patches": patches, "restored": same, "messages": handler.lines}


def _bits(value: torch.Tensor) -> torch.Tensor:
    return value.contiguous().flatten().view(torch.uint8)


def main() -> None:
    results = []
    for job in json.loads(Path(JOB).read_text(encoding="utf-8")):
        if "make" in job:
            make(job["make"], job["out"])
            results.append({})
        elif "gguf" in job:
            quantise(job["gguf"], job["out"])
            results.append({})
        else:
            with torch.inference_mode():  # as its executor does
                results.append(apply(job))
    Path(JOB).with_suffix(".result.json").write_text(json.dumps(results), encoding="utf-8")


main()
