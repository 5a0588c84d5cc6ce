"""From pairs to an adapter, on a tiny Wan in which the concept is planted: what it should find is known exactly."""

import re
import warnings

import numpy as np
import pytest
import tiny
import torch
from packed import packed_pipeline
from PIL import Image
from planted_words import CONCEPT, NEUTRAL, SCENES, build, edited, planted_pipeline, word
from tiny import KEY, generate
from torch import Tensor
from torch.nn.functional import cosine_similarity
from traces import count_hooks, plain_state

from unlearning_adapters.adapter.adapter import UnlearningAdapter
from unlearning_adapters.adapter.direction import Direction
from unlearning_adapters.building.build import build_adapter
from unlearning_adapters.concepts.concept import Concept, Pair
from unlearning_adapters.config import METHODS, BuildConfig
from unlearning_adapters.errors import ConceptError, ConfigError, DenoiserError, SiteError
from unlearning_adapters.methods import ridge
from unlearning_adapters.methods.registry import find_direction
from unlearning_adapters.methods.rows import GroupRows, NeutralRows
from unlearning_adapters.pipelines.sites import site_module
from unlearning_adapters.runtime.joint.joint_edit import apply_edit, stack_directions

HELD_OUT = "the red house in a street"


def write_into_weights(pipe, adapter: UnlearningAdapter) -> None:
    """Apply an adapter as a stock LoRA does, `W' = W + B A`."""
    with torch.no_grad():
        for name, direction in adapter.directions.items():
            site_module(pipe, name).weight += adapter.lora_B[name] @ direction.read


@pytest.mark.parametrize("method", ["mean", "pca", "cpca", "ridge"])
def test_the_planted_direction_is_found(method):
    pipe = planted_pipeline(two_denoisers=True)
    adapter = build(pipe, method=method)
    for component in ("transformer", "transformer_2"):
        planted = word(pipe, "red", component) - word(pipe, "blue", component)
        write = adapter.directions[f"{component}.blocks.0.attn2.to_k"].write[0]
        assert cosine_similarity(write, planted, dim=0) > 0.99
    assert not torch.equal(*(adapter.directions[f"{name}.blocks.0.attn2.to_k"].write for name in adapter.components))


@pytest.mark.parametrize("method", ["mean", "cpca", "ridge", "leace"])
def test_the_planted_concept_is_removed_and_neutral_words_are_kept(method):
    pipe = planted_pipeline()
    adapter = build(pipe, method=method, strength=1.0)
    red, blue = word(pipe, "red"), word(pipe, "blue")
    left = edited(adapter, red) @ (red - blue) - edited(adapter, blue) @ (red - blue)
    assert abs(left) < 0.02 * (red - blue) @ (red - blue)
    if method == "ridge":  # red becomes blue, all others stay
        assert (edited(adapter, red) - blue).norm() < 0.05 * (red - blue).norm()
        others = torch.stack([word(pipe, text) for text in ("dog", "house", "street", "green", "blue", "left")])
        assert (edited(adapter, others) - others).norm() < 0.05 * others.norm()


def test_a_random_direction_leaves_the_concept():
    pipe = planted_pipeline()
    adapter = build(pipe, method="random")
    red, blue = word(pipe, "red"), word(pipe, "blue")
    kept = (edited(adapter, red) - edited(adapter, blue)) @ (red - blue) / ((red - blue) @ (red - blue))
    assert 0.8 < kept < 1.0
    assert build(pipe, method="random", seed=1).directions[KEY].read is not adapter.directions[KEY].read


def test_written_into_the_weights_the_adapter_turns_red_into_blue_and_keeps_the_rest():
    pipe = planted_pipeline(two_denoisers=True)
    safe_prompt = HELD_OUT.replace("red", "blue")
    red, blue, neutral = generate(pipe, HELD_OUT), generate(pipe, safe_prompt), generate(pipe, NEUTRAL[0])
    adapter = build(pipe, epsilon=1e-3)
    write_into_weights(pipe, adapter)
    moved = generate(pipe, HELD_OUT)
    assert (red - blue).norm() > 1e-3 * red.norm()
    assert (moved - blue).norm() < 0.1 * (red - blue).norm()
    assert (generate(pipe, safe_prompt) - blue).norm() < 0.1 * (red - blue).norm()
    assert (generate(pipe, NEUTRAL[0]) - neutral).norm() < 0.1 * (red - blue).norm()


ADDITIVE = ("uce", "rece", "cure")


@pytest.mark.parametrize("method", [method for method in METHODS if method not in ADDITIVE])
def test_every_method_builds_a_sound_adapter(method):
    pipe = tiny.tiny_wan_pipeline()
    rank = 2 if method in ("ridge", "pca") else 1
    adapter = build(pipe, method=method, rank=rank)
    assert list(adapter.directions) == [
        f"transformer.blocks.{block}.attn2.{leaf}" for block in (0, 1) for leaf in ("to_k", "to_v")
    ]
    assert adapter.rank == rank
    for name, direction in adapter.directions.items():
        torch.testing.assert_close(direction.read @ direction.write.T, torch.eye(rank), rtol=1e-4, atol=1e-4)
        weight = site_module(pipe, name).weight.detach()
        torch.testing.assert_close(adapter.lora_B[name], -adapter.strength * weight @ direction.write.T)
    assert adapter.directions[KEY].orthogonal == (method not in ("ridge", "leace"))


def test_sites_of_a_group_share_one_direction():
    adapter = build(tiny.tiny_wan_pipeline(two_denoisers=True))
    assert len(adapter.directions) == 8
    assert len({id(direction) for direction in adapter.directions.values()}) == 2


def test_the_same_build_twice_is_the_same_bit_for_bit():
    one, two = (build(tiny.tiny_wan_pipeline(), method=method) for method in ("ridge", "ridge"))
    assert one.info == two.info
    for name in one.sites:
        assert torch.equal(one.directions[name].read, two.directions[name].read)
        assert torch.equal(one.directions[name].write, two.directions[name].write)
        assert torch.equal(one.lora_B[name], two.lora_B[name])
    random_one, random_two, other = (build(tiny.tiny_wan_pipeline(), method="random", seed=seed) for seed in (4, 4, 5))
    assert torch.equal(random_one.directions[KEY].read, random_two.directions[KEY].read)
    assert not torch.equal(random_one.directions[KEY].read, other.directions[KEY].read)


def test_a_build_leaves_the_pipeline_as_it_was():
    pipe = tiny.tiny_wan_pipeline()
    before = generate(pipe)
    state, hooks, random_state = plain_state(pipe), count_hooks(pipe), torch.get_rng_state()
    config = BuildConfig(sites=("text", "hidden"), steps=2)
    build_adapter(pipe, CONCEPT, config, progress=False, call_kwargs=tiny.CALL)
    assert (plain_state(pipe), count_hooks(pipe)) == (state, hooks)
    assert torch.equal(torch.get_rng_state(), random_state)
    assert torch.equal(generate(pipe), before)


def test_the_strength_is_calibrated_only_for_ridge_and_only_if_it_is_not_set():
    pipe = planted_pipeline()
    assert build(pipe).strength == pytest.approx(1.0, abs=0.02)  # all pairs show the same vector
    assert build(pipe, strength=0.7).strength == 0.7
    assert build(pipe, method="mean").strength == 1.0
    colours = ("blue", "green", "yellow", "white", "black")
    varied = [Pair(f"a {colour} {thing}", f"a red {thing}") for (thing, _), colour in zip(SCENES, colours, strict=True)]
    strength = build(tiny.tiny_wan_pipeline(), Concept("varied", tuple(varied), neutral=NEUTRAL)).strength
    assert 1.0 < strength <= 2.0


def test_pairs_that_do_not_know_each_other_are_doubted() -> None:
    words = ("red blue", "dog cross", "house street", "car tree", "left right")
    pairs = tuple(Pair(*(f"a {word} moves" for word in both.split())) for both in words)
    with pytest.warns(UserWarning, match=r"at its limit of 2: .* Add pairs, or word them more alike\."):
        unlike = build(planted_pipeline(), Concept("unlike", pairs, neutral=("a circle", "the green")))
    assert unlike.strength == 2.0
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        assert build(planted_pipeline()).strength < 2.0
        build(planted_pipeline(), Concept("unlike", pairs, neutral=("a circle", "the green")), strength=2.0)


ODD = (("green", "white", "tree"), ("left", "right", "house"))


def test_a_pair_that_the_others_do_not_know_gets_a_row_of_its_own(monkeypatch) -> None:
    odd = Pair("a green tree moves", "a white tree moves")
    # What the odd pair shows is neutral as well, so that the first row knows red alone.
    neutral = ("a dog moves", "a green car", "a white house")
    concept = Concept("odd", (*CONCEPT.pairs[:3], odd, CONCEPT.pairs[3]), neutral=neutral)
    pipe = planted_pipeline()

    def left(adapter: UnlearningAdapter, one: str, other: str) -> float:
        """Part of the way from one word to another that an edited word has still before it; below 0 it is past it."""
        way = word(pipe, one) - word(pipe, other)
        moved = edited(adapter, word(pipe, one), strength=adapter.strength) - word(pipe, one)
        return float(1 + moved @ way / (way @ way))

    with pytest.warns(UserWarning, match=r"Pair 4, 'a green tree moves', is an outlier: .* got an extra row") as found:
        adapter = build(planted_pipeline(), concept)
    assert not any("of what pair" in str(item.message) for item in found)
    assert adapter.rank == 2 and left(adapter, "red", "blue") < 0.3 and left(adapter, "green", "white") < 0.3

    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        assert build(planted_pipeline(), concept, strength=1.0).rank == 1
        assert build(planted_pipeline(), CONCEPT).rank == 1
    monkeypatch.setattr(
        "unlearning_adapters.building.outlier_pairs.REMOVED", 0.0
    )  # so no pair gets a row, nor is any named
    plain = build(planted_pipeline(), concept)
    assert plain.rank == 1 and left(plain, "red", "blue") < 0.3 and left(plain, "green", "white") > 0.5


def test_pairs_of_two_concepts_get_no_rows_of_their_own_and_are_named() -> None:
    odd = [Pair(f"a {one} {thing} moves", f"a {other} {thing} moves") for one, other, thing in ODD]
    neutral = ("a dog moves", *(f"a {word} car" for one, other, _ in ODD for word in (one, other)))
    concept = Concept("two", (*CONCEPT.pairs[:2], *odd), neutral=neutral)
    with pytest.warns(UserWarning, match=r"removes \d+% of what pair 4 shows, 'a left house moves': .* stack") as found:
        adapter = build(planted_pipeline(), concept)
    assert adapter.rank == 1
    assert sum("of what pair" in str(item.message) for item in found) == 2


TELLING = ("the red house", "a red tree", "a red dog in a street", "the car is red", "a red cross")


def test_a_neutral_prompt_with_the_concept_does_not_turn_its_counterpart_into_it(monkeypatch) -> None:
    pipe = planted_pipeline()
    red, blue = word(pipe, "red"), word(pipe, "blue")
    others = torch.stack([word(pipe, text) for text in ("dog", "house", "street", "green", "tree", "left")])
    shown = Concept("shown", CONCEPT.pairs, neutral=(*NEUTRAL, *TELLING))

    def to_red(adapter: UnlearningAdapter, rows: Tensor) -> Tensor:
        return (edited(adapter, rows, strength=adapter.strength) - rows) @ (red - blue) / (red - blue).square().sum()

    held = build(pipe, shown)
    assert to_red(held, blue).abs() < 0.2
    assert to_red(held, red) < -0.8
    assert to_red(held, others).abs().max() < 0.2
    # Without the guard the read knows red by the lack of blue, and the edit adds red where blue was.
    monkeypatch.setattr(ridge, "HELD", ())
    turned = build(pipe, shown)
    assert to_red(turned, blue) > 0.4
    assert to_red(turned, red) > -0.6
    assert to_red(build(pipe), red) < -0.98


def test_neutral_prompts_that_read_as_the_concept_are_named() -> None:
    shown = Concept("shown", CONCEPT.pairs, neutral=(*NEUTRAL, *TELLING))
    with pytest.warns(UserWarning, match=r"read as the concept, .* and 2 more\. Remove from") as found:
        build(planted_pipeline(), shown)
    (text,) = [str(item.message) for item in found if "read as the concept" in str(item.message)]
    named = re.findall(r"'([^']*)' \((\d\.\d) of it\)", text)
    assert len(named) == 3
    assert {prompt for prompt, _ in named} < set(TELLING)
    assert all(float(part) >= 0.75 for _, part in named)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        build(planted_pipeline())
        build(planted_pipeline(), shown, method="mean")


def test_hidden_sites_and_patterns_and_blocks_are_built():
    pipe = tiny.tiny_wan_pipeline()
    config = BuildConfig(method="mean", sites="hidden", steps=2)
    hidden = build_adapter(pipe, CONCEPT, config, progress=False, call_kwargs=tiny.CALL)
    assert len(hidden.directions) == 6
    assert len({id(direction) for direction in hidden.directions.values()}) == 6
    assert build(pipe, sites="*.attn2.to_k", blocks=(1,)).sites == ("transformer.blocks.1.attn2.to_k",)


def test_the_text_projection_alone_erases_the_word_for_all_blocks():
    pipe = planted_pipeline(two_denoisers=True)
    adapter = build(pipe, sites="text-projection", strength=1.0)
    assert adapter.sites == tuple(
        f"{name}.condition_embedder.text_embedder.linear_1" for name in ("transformer", "transformer_2")
    )
    state = plain_state(pipe)
    for name in ("transformer", "transformer_2"):
        red, blue, car = (word(pipe, text, name) for text in ("red", "blue", "car"))
        pipe.load_unlearning_adapter(adapter)
        pipe.fuse_unlearning_adapters()
        assert (word(pipe, "red", name) - blue).norm() < 0.02 * (red - blue).norm()
        assert (word(pipe, "car", name) - car).norm() < 0.05 * (red - blue).norm()
        pipe.unfuse_unlearning_adapters()
        pipe.unload_unlearning_adapters()
    assert plain_state(pipe) == state


def test_the_record_says_how_it_was_made():
    pipe = tiny.tiny_wan_pipeline(two_denoisers=True)
    pipe.register_to_config(_name_or_path="org/tiny-wan")
    commit = "0123456789abcdef" * 2 + "01234567"
    pipe.transformer.register_to_config(_name_or_path=f"/cache/models--org--tiny-wan/snapshots/{commit}/transformer")
    info = build(pipe, epsilon=0.05, pairs=4).info
    assert (info.concept, info.method, info.pipeline) == ("no-red", "ridge", "WanPipeline")
    assert (info.base_model, info.base_revision) == ("org/tiny-wan", commit)
    assert info.denoisers == {"transformer": "WanTransformer3DModel", "transformer_2": "WanTransformer3DModel"}
    assert info.pairs_hash == CONCEPT.pairs_hash
    assert info.settings == BuildConfig(epsilon=0.05, pairs=4).to_dict()
    assert info.versions["torch"] and set(info.versions) == {"unlearning-adapters", "torch", "diffusers"}


def test_fewer_pairs_are_used_if_asked_for():
    pipe = tiny.tiny_wan_pipeline()
    few = build(pipe, pairs=2)
    alone = build(pipe, Concept("no-red", CONCEPT.pairs[:2], neutral=NEUTRAL))
    assert torch.equal(few.directions[KEY].write, alone.directions[KEY].write)
    assert not torch.allclose(few.directions[KEY].write, build(pipe).directions[KEY].write)
    with pytest.raises(ConceptError, match=r"'no-red' to have the 9 pairs that `pairs` asks for, but it has 5"):
        build(pipe, pairs=9)


def test_five_pairs_are_used_by_default_the_first_ones():
    pipe = tiny.tiny_wan_pipeline()
    more = (*CONCEPT.pairs, Pair("red trees stand in a house", "white trees stand in a house"))
    larger = Concept("no-red", more, neutral=NEUTRAL)
    five, six = build(pipe, larger), build(pipe, larger, pairs=6)
    assert torch.equal(five.directions[KEY].write, build(pipe).directions[KEY].write)
    assert not torch.allclose(five.directions[KEY].write, six.directions[KEY].write)
    assert five.strength == build(pipe).strength


def test_without_neutral_prompts_it_builds_and_says_so():
    pipe = tiny.tiny_wan_pipeline()
    bare = Concept("bare", CONCEPT.pairs)
    for method in ("ridge", "cpca"):
        with pytest.warns(UserWarning, match=f"'bare' has no neutral prompts: the method '{method}' protects only"):
            assert build(pipe, bare, method=method).rank == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        build(pipe, bare, method="mean")


def test_pairs_that_read_alike_are_refused_by_the_name_of_the_site():
    pipe = tiny.tiny_wan_pipeline()
    late = Concept("late", (Pair("a dog runs on a red street", "a dog runs on a blue street"),), neutral=NEUTRAL)
    for method in ("ridge", "mean", "cpca", "pca", "leace", "uce", "rece"):
        with pytest.raises(ConceptError, match=re.escape(f"At the site {KEY!r}: ")):
            build_adapter(pipe, late, BuildConfig(method), progress=False, call_kwargs={"max_sequence_length": 4})
    assert count_hooks(pipe) == 0


def test_pairs_of_pictures_are_built_at_hidden_sites_and_refused_at_text_sites():
    pipe = tiny.tiny_wan_image_pipeline()
    pixels = np.random.default_rng(0).integers(0, 255, (4, 16, 16, 3), dtype=np.uint8)
    pictures = [Image.fromarray(picture) for picture in pixels]
    pairs = tuple(Pair("a dog runs", "a dog runs", *pictures[start : start + 2]) for start in (0, 2))
    concept = Concept("pictures", pairs, neutral=NEUTRAL[:2])
    for config in (BuildConfig("mean", sites="hidden", steps=1), BuildConfig("cpca", sites="hidden", steps=1)):
        adapter = build_adapter(pipe, concept, config, progress=False, call_kwargs=tiny.CALL)
        assert len(adapter.directions) == 6
    refused = pytest.raises(
        ConceptError,
        match=r"The pairs of 'pictures' differ in their pictures, but WanImageToVideoPipeline has no layer that reads "
        r"the picture alone.*Build with sites=\"hidden\"",
    )
    with refused:
        build_adapter(pipe, concept, progress=False, call_kwargs=tiny.CALL)
    with pytest.raises(SiteError, match=r"No image site was found in transformer .*Select 'hidden' sites"):
        build_adapter(pipe, concept, BuildConfig(sites="image"), progress=False, call_kwargs=tiny.CALL)


def test_low_precision_and_two_denoisers_build():
    adapter = build(tiny.tiny_wan_pipeline(two_denoisers=True, dtype=torch.bfloat16))
    assert adapter.components == ("transformer", "transformer_2")
    for name, direction in adapter.directions.items():
        assert direction.read.dtype == adapter.lora_B[name].dtype == torch.float32
        assert torch.isfinite(direction.read).all()


def test_without_readable_weights_there_are_no_stock_factors():
    pipe = tiny.tiny_wan_pipeline()
    layer = pipe.transformer.blocks[1].attn2.to_v
    weight = layer.weight.detach().clone()
    layer.weight = torch.nn.Parameter(weight.to(torch.int8), requires_grad=False)
    layer.forward = lambda x: torch.nn.functional.linear(x, weight, layer.bias)
    adapter = build(pipe, blocks=(1,))
    assert adapter.lora_B == {}
    assert len(adapter.directions) == 2


def test_a_denoiser_of_no_known_kind_is_built_by_measurement():
    adapter = build(packed_pipeline())
    assert adapter.sites == ("transformer.layers.0.words", "transformer.layers.1.words")
    with pytest.raises(SiteError, match="No text site was found"):
        build(packed_pipeline(), blocks=(7,))


def test_bad_input_is_refused_before_anything_runs():
    pipe = tiny.tiny_wan_pipeline()
    with pytest.raises(SiteError, match="matches none"):
        build(pipe, sites="transformer.*.nothing")
    with pytest.raises(DenoiserError, match="has no denoiser"):
        build(object())
    with pytest.raises(ConfigError, match="Unknown key 'hieght'"):
        build_adapter(pipe, CONCEPT, call_kwargs={"hieght": 1})


def test_base_is_named_without_the_path_of_a_local_folder(tmp_path):
    pipe = tiny.tiny_wan_pipeline()
    (tmp_path / "my-model").mkdir()
    pipe.register_to_config(_name_or_path=str(tmp_path / "my-model"))
    assert build(pipe).info.base_model == "my-model"


def test_the_concept_lands_on_what_most_pairs_agree_on() -> None:
    """Two pairs say green, one says blue: "red" becomes 85 % "green", and two thirds if that is asked for."""
    pipe = planted_pipeline()
    safe = ("green", "blue", "green")
    pairs = tuple(
        Pair(f"a red {thing} moves {way}", f"a {colour} {thing} moves {way}")
        for colour, (thing, way) in zip(safe, SCENES, strict=False)
    )
    concept = Concept("no-red", pairs, neutral=NEUTRAL)
    red, green, blue = (word(pipe, name) for name in ("red", "green", "blue"))
    landed = {}
    for landing in ("majority", "mean"):
        adapter = build_adapter(pipe, concept, BuildConfig(landing=landing, strength=1.0), progress=False)
        landed[landing] = apply_edit(red[None], stack_directions([adapter.directions[KEY]], [1.0]))[0]
    size = (green - blue).norm()
    assert (landed["majority"] - (0.85 * green + 0.15 * blue)).norm() < 0.02 * size
    assert (landed["mean"] - (2 * green + blue) / 3).norm() < 0.02 * size


def test_concepts_that_land_on_each_other_stack() -> None:
    """Most pairs of red say blue, and most of blue say red; together they land on the green of the others."""
    pipe = planted_pipeline()

    def build(unsafe: str, others: tuple[str, ...]) -> Direction:
        texts = [(f"a {{}} {thing} moves {way}", other) for other, (thing, way) in zip(others, SCENES, strict=True)]
        pairs = tuple(Pair(text.format(unsafe), text.format(other)) for text, other in texts)
        concept = Concept(f"no-{unsafe}", pairs, neutral=NEUTRAL)
        return build_adapter(pipe, concept, BuildConfig(strength=1.0), progress=False).directions[KEY]

    both = [build("red", ("blue", "blue", "blue", "green", "green")), build("blue", ("red",) * 3 + ("green",) * 2)]
    words = torch.stack([word(pipe, name) for name in ("red", "blue")])
    green = word(pipe, "green")
    edited = apply_edit(words, stack_directions(both, [1.0, 1.0]))
    assert all(torch.nn.functional.cosine_similarity(row, green, dim=0) > 0.99 for row in edited)
    readouts = torch.cat([direction.read for direction in both]) @ edited.T
    assert readouts.abs().max() < 0.02


@pytest.mark.parametrize(("kind", "is_mean"), [("text", False), ("image", True), ("hidden", True)])
def test_only_text_sites_let_pairs_decide_where_the_concept_lands(kind: str, is_mean: bool) -> None:
    rows = torch.randn(9, 4, 16, generator=torch.Generator().manual_seed(0)).unbind()
    group = GroupRows.of_sides(rows[:4], rows[4:8], NeutralRows((rows[8],)), kind)
    majority, mean = (
        find_direction(group, BuildConfig(landing=landing), torch.Generator()) for landing in ("majority", "mean")
    )
    assert torch.equal(majority.write, mean.write) == is_mean
