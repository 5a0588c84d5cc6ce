"""What does not fit is named in one line, with the cure, and leaves no trace: on one denoiser, on two, and compiled."""

import re
import warnings
from dataclasses import replace

import accelerate
import pytest
import torch
from tiny import tiny_wan_pipeline

from planted import output, planted, reference_output, snapshot
from unlearning_adapters.building.build import build_adapter
from unlearning_adapters.concepts.concept import Concept, Pair
from unlearning_adapters.errors import BaseMismatchError, DenoiserError, SiteError, UnlearningError
from unlearning_adapters.pipelines.sites import find_sites, site_module

CONCEPT = Concept("red", (Pair("a red circle", "a blue circle"),), neutral=("a dog",))


def plain(pipe):
    return pipe


def compiled_around(pipe):
    for name in ("transformer", "transformer_2"):
        if getattr(pipe, name) is not None:
            setattr(pipe, name, torch.compile(getattr(pipe, name), backend="eager"))
    return pipe


def compiled_in_place(pipe):
    for name in ("transformer", "transformer_2"):
        if getattr(pipe, name) is not None:
            getattr(pipe, name).compile(backend="eager")
    return pipe


def with_sites(adapter, old, new):
    directions = {re.sub(old, new, site): value for site, value in adapter.directions.items()}
    return replace(adapter, directions=directions, lora_B={})


def wider(pipe):
    return planted(tiny_wan_pipeline(two_denoisers=pipe.transformer_2 is not None, heads=6))


# What is wrong, what is loaded then, the error, and its text on one denoiser and on two.
MISFITS = {
    "zero sites matched": (
        lambda pipe: with_sites(planted(pipe), "attn2", "attn7"),
        SiteError,
        r"The adapter 'red' does not fit: all {all} sites are missing. WanPipeline has no Linear layer "
        r"'transformer.blocks.0.attn7.to_k'. Nearest: transformer.blocks.0.attn2.to_k, .*. It was built on "
        r"'tiny/wan'; load that base, or build the adapter on this pipeline.",
    ),
    "half of the sites matched": (
        lambda pipe: with_sites(planted(pipe), r"blocks\.1", "blocks.9"),
        SiteError,
        r"The adapter 'red' does not fit: {half} of the {all} sites are missing. WanPipeline has no Linear layer "
        r"'transformer.blocks.9.attn2.to_k'. Nearest: transformer.blocks.0.attn2.to_k, .*. It was built on "
        r"'tiny/wan'; load that base, or build the adapter on this pipeline.",
    ),
    "wrong base": (
        wider,
        BaseMismatchError,
        r"The adapter 'red' does not fit: it was built for in_features = 72 at transformer.blocks.0.attn2.to_k, and "
        r"the pipeline has 48. Load its base \('tiny/wan'\), or build the adapter on this one.",
    ),
    "wrong component": (
        lambda pipe: with_sites(planted(pipe), r"^transformer(_2)?\.", r"unet\1."),
        SiteError,
        r"The adapter 'red' does not fit: all {all} sites are missing. Site 'unet.blocks.0.attn2.to_k' names the "
        r"component 'unet', but WanPipeline has the denoisers {denoisers}. It was built on 'tiny/wan'; load that "
        r"base, or build the adapter on this pipeline.",
    ),
}


@pytest.mark.parametrize("state", [plain, compiled_around, compiled_in_place])
@pytest.mark.parametrize("two", [False, True])
@pytest.mark.parametrize("misfit", MISFITS)
def test_an_adapter_that_does_not_fit_is_named_and_nothing_changes(misfit, two, state):
    pipe = tiny_wan_pipeline(two_denoisers=two)
    make, error, text = MISFITS[misfit]
    adapter, fitting = make(pipe), planted(pipe, "blue", seed=3)
    state(pipe)
    pipe.load_unlearning_adapter(fitting)
    parts = "transformer, transformer_2" if two else "transformer"
    text = text.format(all=8 if two else 4, half=4 if two else 2, denoisers=parts)
    before = snapshot(bare(pipe))
    with pytest.raises(error) as caught:
        pipe.load_unlearning_adapter(adapter)
    assert re.fullmatch(text, str(caught.value)), str(caught.value)
    assert isinstance(caught.value, UnlearningError) and "_orig_mod" not in str(caught.value)
    assert snapshot(bare(pipe)) == before
    pipe.unload_unlearning_adapters()
    assert "_unlearning_adapters" not in vars(getattr(pipe.transformer, "_orig_mod", pipe.transformer))


class bare:
    """The networks of a pipeline without what `torch.compile` put around them."""

    def __init__(self, pipe):
        for name in ("transformer", "transformer_2"):
            network = getattr(pipe, name)
            setattr(self, name, getattr(network, "_orig_mod", network))


@pytest.mark.parametrize("two", [False, True])
def test_another_base_of_the_same_shape_is_said_and_refused_on_request(two):
    """It is a warning, since a fine-tuned base is another base too: the edit is made from the weights at hand."""
    adapter = planted(tiny_wan_pipeline(two, seed=3))
    pipe = tiny_wan_pipeline(two)
    before = snapshot(pipe)
    text = (
        r"The adapter 'red' was built on other weights than this pipeline's \('tiny/wan'\), or its file was changed: "
        r"its LoRA factors deviate by \d+%. Check what it removes."
    )
    with warnings.catch_warnings(), pytest.raises(UserWarning) as caught:
        warnings.simplefilter("error")
        pipe.load_unlearning_adapter(adapter)
    assert re.fullmatch(text, str(caught.value)) and snapshot(pipe) == before
    if not two:
        with pytest.warns(UserWarning, match=text):
            pipe.load_unlearning_adapter(adapter)
        assert (output(pipe) - reference_output((adapter, 1.0))).abs().max() < 1e-5


EMPTY = (
    r"The weights of WanTransformer3DModel are on the meta device, so that 'blocks.0.attn2.to_k' holds no numbers, and "
    r"no offloading brings them back. Load the pipeline again with from_pretrained\(\)."
)
ON_META = {
    "load": lambda pipe: pipe.load_unlearning_adapter(planted(tiny_wan_pipeline(), "blue", seed=3), "blue"),
    "set": lambda pipe: pipe.set_unlearning_adapters("red", 0.5),
    "fuse": lambda pipe: pipe.fuse_unlearning_adapters(),
    "build": lambda pipe: build_adapter(pipe, CONCEPT, progress=False),
}


@pytest.mark.parametrize("two", [False, True])
@pytest.mark.parametrize("verb", ON_META)
def test_a_pipeline_on_the_meta_device_is_named_and_nothing_changes(verb, two):
    pipe = tiny_wan_pipeline(two)
    pipe.load_unlearning_adapter(planted(pipe))
    pipe.to("meta")
    before = tracks(pipe)
    with warnings.catch_warnings(), pytest.raises(DenoiserError) as caught:
        warnings.filterwarnings("ignore", message=".* edits transformer only")
        ON_META[verb](pipe)
    assert re.fullmatch(EMPTY, str(caught.value)) and tracks(pipe) == before
    pipe.unload_unlearning_adapters()
    assert tracks(pipe)[0] == [] and not any(hooks for _, _, hooks in tracks(pipe)[1])


def tracks(pipe):
    """As `snapshot`, for weights that have no bits."""
    names = ("transformer", "transformer_2")
    networks = [network for name in names if (network := getattr(pipe, name)) is not None]
    modules = [
        (id(module), sorted(vars(module)), sorted(getattr(vars(module).get("_diffusers_hook"), "hooks", {})))
        for network in networks
        for module in network.modules()
    ]
    return sorted(n for names in pipe.get_list_unlearning_adapters().values() for n in names), modules


def test_a_fused_adapter_on_the_meta_device_is_named():
    pipe = tiny_wan_pipeline()
    pipe.load_unlearning_adapter(planted(pipe))
    pipe.fuse_unlearning_adapters()
    pipe.to("meta")
    before = tracks(pipe)
    with pytest.raises(DenoiserError) as caught:
        pipe.unfuse_unlearning_adapters()
    assert re.fullmatch(EMPTY, str(caught.value)) and tracks(pipe) == before


def test_weights_that_are_offloaded_are_not_taken_for_lost_ones():
    pipe = tiny_wan_pipeline()
    red = planted(pipe)
    accelerate.cpu_offload(pipe.transformer, torch.device("cpu"))
    assert site_module(pipe, red.sites[0]).weight.is_meta
    pipe.load_unlearning_adapter(red)
    pipe.set_unlearning_adapters("red", 1.2)
    assert (output(pipe) - reference_output((red, 1.2))).abs().max() < 1e-5


@pytest.mark.parametrize("state", [compiled_around, compiled_in_place])
@pytest.mark.parametrize("two", [False, True])
def test_a_compiled_denoiser_has_the_names_of_the_one_that_was_compiled(two, state):
    pipe = tiny_wan_pipeline(two)
    names = [site.name for site in find_sites(pipe)]
    adapter = planted(pipe)
    state(pipe)
    assert [site.name for site in find_sites(pipe)] == names == list(adapter.sites)
    made = planted(pipe)
    assert made.sites == adapter.sites and not any("_orig_mod" in site for site in made.sites)
    pipe.load_unlearning_adapter(made)
    parts = ["transformer", "transformer_2"] if two else ["transformer"]
    assert pipe.get_list_unlearning_adapters() == {part: ["red"] for part in parts}
    for call, text in (
        (lambda: find_sites(pipe, "transformer.blocks.*.attn9.*"), r"of transformer \(WanTransformer3DModel\)"),
        (lambda: site_module(pipe, "transformer.blocks.7.attn2.to_k"), r"Nearest: transformer\.blocks\.0\.attn2\.to_k"),
        (lambda: pipe.set_unlearning_adapters("rad"), "Did you mean 'red'"),
    ):
        with pytest.raises(UnlearningError, match=text) as caught:
            call()
        assert "_orig_mod" not in str(caught.value) and "OptimizedModule" not in str(caught.value)
    pipe.fuse_unlearning_adapters()
    pipe.unfuse_unlearning_adapters()
    pipe.unload_unlearning_adapters()


def test_projections_that_are_fused_are_named_on_a_compiled_denoiser():
    pipe = tiny_wan_pipeline()
    adapter = planted(pipe)
    pipe.transformer.fuse_qkv_projections()
    compiled_around(pipe)
    before = snapshot(bare(pipe))
    with pytest.raises(DenoiserError) as caught:
        pipe.load_unlearning_adapter(adapter)
    assert str(caught.value) == (
        "The query, key and value projections of WanTransformer3DModel are fused, so that 'blocks.0.attn2.to_k' is not "
        "used and its edit would have no effect. Call unfuse_qkv_projections() first."
    )
    assert snapshot(bare(pipe)) == before
