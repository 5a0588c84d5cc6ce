"""What users, and other libraries, do to a pipeline between two verbs."""

import contextlib
import types
from collections.abc import Callable
from functools import cache
from random import Random
from typing import Any

import torch
from torch import nn

from .world import CALL, PROMPT, World, lora

State = Callable[[World, Random], None]
STATES: dict[str, State] = {}


def state(name: str) -> Callable[[State], State]:
    """Register what brings a pipeline into a state."""

    def keep(function: State) -> State:
        STATES[name] = function
        return function

    return keep


def denoiser_of(world: World, random: Random) -> Any:
    """Return a denoiser of the pipeline, whatever it is by now."""
    parts = [part for name, part in world.pipe.components.items() if name.startswith("transformer")]
    return random.choice([part for part in parts if isinstance(part, nn.Module)])


def layer_of(world: World, random: Random) -> Any:
    """Return a layer that adapters edit, or another one."""
    layers = [
        part for name, part in denoiser_of(world, random).named_modules() if name.endswith(("to_k", "to_v", "to_q"))
    ]
    return random.choice(layers)


@state("a component is None")
def component_is_none(world: World, random: Random) -> None:
    name = random.choice(["text_encoder", "tokenizer", "vae", "scheduler", "transformer", "transformer_2"])
    setattr(world.pipe, name, None)


@state("a component is deleted")
def component_is_deleted(world: World, random: Random) -> None:
    delattr(
        world.pipe, random.choice(["text_encoder", "tokenizer", "vae", "scheduler", "transformer", "transformer_2"])
    )


@state("a component is of another type")
def component_is_odd(world: World, random: Random) -> None:
    name = random.choice(["text_encoder", "tokenizer", "vae", "scheduler", "transformer", "transformer_2"])
    setattr(world.pipe, name, random.choice(["a text", 3, nn.Linear(2, 2), nn.Identity(), object()]))


class Around(nn.Module):
    """A wrapper of a user's own."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner
        self.config = getattr(inner, "config", None)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Call what is inside."""
        return self.inner(*args, **kwargs)


@state("the denoiser is wrapped")
def wrapped(world: World, random: Random) -> None:
    network = world.pipe.transformer
    world.pipe.transformer = random.choice([Around, lambda inner: nn.DataParallel(inner, device_ids=[])])(network)


@state("compiled")
def compiled(world: World, random: Random) -> None:
    network = denoiser_of(world, random)
    random.choice([
        lambda: setattr(world.pipe, "transformer", torch.compile(network, backend="eager")),
        lambda: network.compile(backend="eager"),
        lambda: network.blocks[0].compile(backend="eager"),
    ])()  # fmt: skip


@cache
def _mesh() -> Any:
    import torch.distributed as dist
    from torch.distributed.device_mesh import init_device_mesh

    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    return init_device_mesh("cpu", (1,))


@state("sharded by FSDP2")
def sharded(world: World, random: Random) -> None:
    from torch.distributed.fsdp import fully_shard

    network = denoiser_of(world, random)
    for block in network.blocks:
        fully_shard(block, mesh=_mesh())
    if random.random() < 0.5:
        fully_shard(network, mesh=_mesh())


@state("quantised by quanto")
def quanto(world: World, random: Random) -> None:
    from optimum.quanto import freeze, qint8, quantize

    network = denoiser_of(world, random)
    quantize(network, weights=qint8, include="*attn2*")
    if random.random() < 0.7:
        freeze(network)


@state("quantised by torchao")
def torchao(world: World, random: Random) -> None:
    from torchao.quantization import Int8WeightOnlyConfig, quantize_

    quantize_(
        denoiser_of(world, random),
        Int8WeightOnlyConfig(),
        filter_fn=lambda part, name: isinstance(part, nn.Linear) and "attn2" in name,
    )


@state("a weight of another kind")
def odd_weight(world: World, random: Random) -> None:
    layer = layer_of(world, random)
    weight = layer.weight.detach()
    layer.weight = nn.Parameter(
        random.choice([
            lambda: weight.to(torch.float8_e4m3fn), lambda: (weight * 100).to(torch.int8), lambda: weight.to("meta"),
            lambda: weight.half(), lambda: weight.double(), lambda: weight * torch.nan, lambda: weight / 0,
            lambda: weight.T.contiguous(), lambda: weight[:3], lambda: weight.to_sparse(), lambda: weight[0],
        ])(),
        requires_grad=False,
    )  # fmt: skip


@state("a weight changed")
def changed_weight(world: World, random: Random) -> None:
    with torch.no_grad():
        layer_of(world, random).weight.mul_(1.5)


@state("a layer is gone")
def layer_gone(world: World, random: Random) -> None:
    network = denoiser_of(world, random)
    random.choice([
        lambda: setattr(network.blocks[0].attn2, "to_k", nn.Identity()),
        lambda: network.blocks.__delitem__(1),
        lambda: delattr(network.blocks[0].attn2, "to_v"),
        lambda: setattr(network.blocks[0].attn2, "to_v", nn.Linear(3, 48)),
        lambda: delattr(network.blocks[0].attn2.to_k, "weight"),
        lambda: setattr(network.blocks[0].attn2.to_k, "weight", None),
    ])()  # fmt: skip


@state("weights are shared")
def shared_weights(world: World, random: Random) -> None:
    attention = denoiser_of(world, random).blocks[0].attn2
    attention.to_v.weight = attention.to_k.weight


@state("a parametrised weight")
def parametrised(world: World, random: Random) -> None:
    nn.utils.parametrizations.weight_norm(layer_of(world, random))


@state("a forward of its own")
def own_forward(world: World, random: Random) -> None:
    layer = layer_of(world, random)
    layer.forward = types.MethodType(lambda self, x: nn.functional.linear(x, self.weight, self.bias), layer)


@state("moved or cast")
def moved(world: World, random: Random) -> None:
    part = random.choice([part for part in world.pipe.components.values() if isinstance(part, nn.Module)])
    part.to(random.choice(["meta", torch.float16, torch.bfloat16, torch.float64]))


@state("offloaded")
def offloaded(world: World, random: Random) -> None:
    import accelerate

    network = denoiser_of(world, random)
    device = torch.device("cpu")
    random.choice([
        lambda: accelerate.cpu_offload(network, device),
        lambda: accelerate.disk_offload(network, world.folder / "offload", execution_device=device),
        lambda: network.enable_group_offload(device, device, "block_level", 1),
        lambda: network.enable_group_offload(
            device, device, "leaf_level", offload_to_disk_path=str(world.folder / "group")
        ),
        lambda: network.enable_layerwise_casting(torch.float8_e4m3fn, torch.float32),
        lambda: accelerate.hooks.remove_hook_from_module(network, recurse=True),
    ])()  # fmt: skip


@state("a LoRA verb")
def lora_verb(world: World, random: Random) -> None:
    pipe = world.pipe
    random.choice([
        lambda: pipe.load_lora_weights({key: value.clone() for key, value in lora().items()}, "style"),
        lambda: pipe.load_lora_weights({key: value.clone() for key, value in lora().items()}, "style"),
        lambda: pipe.fuse_lora(), lambda: pipe.unfuse_lora(), lambda: pipe.disable_lora(),
        lambda: pipe.unload_lora_weights(),
        lambda: pipe.set_adapters("style", 0.5), lambda: pipe.delete_adapters("style"),
    ])()  # fmt: skip


@state("projections are fused")
def fused_projections(world: World, random: Random) -> None:
    network = denoiser_of(world, random)
    random.choice([network.fuse_qkv_projections, network.unfuse_qkv_projections])()


@state("a cache")
def cached(world: World, random: Random) -> None:
    from diffusers import FirstBlockCacheConfig

    network = denoiser_of(world, random)
    random.choice([lambda: network.enable_cache(FirstBlockCacheConfig(0.1)), network.disable_cache])()


@state("modes")
def modes(world: World, random: Random) -> None:
    network = denoiser_of(world, random)
    random.choice(
        [network.train, network.eval, network.enable_gradient_checkpointing, lambda: network.requires_grad_(False)]
    )()


@state("a checkpoint is loaded")
def loaded_state(world: World, random: Random) -> None:
    network = denoiser_of(world, random)
    network.load_state_dict(
        {name: value.clone() for name, value in network.state_dict().items()}, assign=random.random() < 0.5
    )


@state("another denoiser")
def other_denoiser(world: World, random: Random) -> None:
    from tiny import tiny_wan_transformer

    world.pipe.transformer = tiny_wan_transformer(seed=random.randrange(3))


@state("a call")
def call(world: World, random: Random) -> None:
    world.pipe(PROMPT, **CALL, output_type="latent", generator=torch.Generator().manual_seed(0))


@state("the editor's attribute is gone")
def no_editor(world: World, random: Random) -> None:
    vars(denoiser_of(world, random)).pop("_unlearning_adapters", None)


def disturb(world: World, random: Random) -> str:
    """Bring the pipeline into a random state; what cannot be done there is left out."""
    name = random.choice(list(STATES))
    with contextlib.suppress(Exception):  # such as a LoRA verb without a LoRA: it is not ours that is tested
        STATES[name](world, random)
    return name
