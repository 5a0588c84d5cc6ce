"""The kinds of adapters that PEFT makes, at the text layers of Wan."""

from __future__ import annotations

from peft import IA3Config, LoHaConfig, LoKrConfig, LoraConfig, OFTConfig, VeraConfig

LAYERS = ["attn2.to_k", "attn2.to_v"]


KINDS = {
    "LoRA": lambda: LoraConfig(r=2, target_modules=LAYERS, init_lora_weights=False),
    "LoRA with a bias": lambda: LoraConfig(r=2, target_modules=LAYERS, init_lora_weights=False, lora_bias=True),
    "rank-stabilised LoRA": lambda: LoraConfig(r=2, target_modules=LAYERS, init_lora_weights=False, use_rslora=True),
    "DoRA": lambda: LoraConfig(r=2, target_modules=LAYERS, init_lora_weights=False, use_dora=True),
    "LoKr": lambda: LoKrConfig(r=2, target_modules=LAYERS, init_weights=False),
    "LoHa": lambda: LoHaConfig(r=2, target_modules=LAYERS, init_weights=False),
    "VeRA": lambda: VeraConfig(r=4, target_modules=LAYERS, init_weights=False),
    "IA3": lambda: IA3Config(target_modules=LAYERS, feedforward_modules=[], init_ia3_weights=False),
    "OFT": lambda: OFTConfig(oft_block_size=4, target_modules=LAYERS, init_weights=False),
    "modules to save": lambda: LoraConfig(r=2, target_modules=["attn1.to_q"], modules_to_save=LAYERS),
}
