"""Nodes for tests alone: a text encoder and a decoder that are small enough, since ComfyUI has fixed sizes for both."""

import hashlib

import torch

WIDTH, TOKENS = 4096, 12


class TinyText:
    """Words as random rows, the same for the same word."""

    RETURN_TYPES = ("CONDITIONING",)
    FUNCTION = "encode"
    CATEGORY = "tiny"

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"text": ("STRING", {"multiline": True})}}

    def encode(self, text):
        rows = torch.zeros(1, TOKENS, WIDTH)
        for place, word in enumerate(text.split()[:TOKENS]):
            seed = int.from_bytes(hashlib.sha256(word.encode()).digest()[:4], "little")
            rows[0, place] = torch.randn(WIDTH, generator=torch.Generator().manual_seed(seed))
        return ([[rows, {}]],)


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
