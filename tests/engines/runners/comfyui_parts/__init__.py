"""Nodes for tests alone: a text encoder and a decoder that are small enough, since ComfyUI has fixed sizes for both."""

import hashlib

import torch

WIDTH, POOLED, TOKENS = 4096, 768, 12


class TinyText:
    """Words as random rows, the same for the same word, and their mean for models that read a pooled prompt too."""

    RETURN_TYPES = ("CONDITIONING",)
    FUNCTION = "encode"
    CATEGORY = "tiny"

    @classmethod
    def INPUT_TYPES(cls):
        return {
            "required": {"text": ("STRING", {"multiline": True})},
            "optional": {
                "width": ("INT", {"default": WIDTH, "min": POOLED // 16, "max": WIDTH}),
                "mask": ("BOOLEAN", {"default": False}),  # as the text encoder of LTX-Video gives it, which needs one
            },
        }

    def encode(self, text, width=WIDTH, mask=False):
        rows = torch.zeros(1, TOKENS, WIDTH)
        for place, word in enumerate(text.split()[:TOKENS]):
            seed = int.from_bytes(hashlib.sha256(word.encode()).digest()[:4], "little")
            rows[0, place] = torch.randn(WIDTH, generator=torch.Generator().manual_seed(seed))
        more = {"pooled_output": rows.mean(dim=1)[:, :POOLED]}
        if mask:
            more["attention_mask"] = torch.ones(1, TOKENS, dtype=torch.long)
        return ([[rows[..., :width], more]],)


class Decoder:
    """Three channels of the latents as colours."""

    def decode(self, latents):
        colours = torch.sigmoid(latents[:, :3].float()).permute(0, 2, 3, 4, 1)
        return colours.repeat_interleave(8, dim=2).repeat_interleave(8, dim=3)


class TinyVAE:
    """Gives `Decoder`."""

    RETURN_TYPES = ("VAE",)
    FUNCTION = "load"
    CATEGORY = "tiny"

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {}}

    def load(self):
        return (Decoder(),)


NODE_CLASS_MAPPINGS = {"TinyText": TinyText, "TinyVAE": TinyVAE}
