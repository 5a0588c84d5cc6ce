"""The benchmark of CastWorld: how it draws concepts and prompts, counts what clips show, resumes, and writes tables."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tiny import tiny_wan_pipeline

from unlearning_adapters.concepts.wording import find_word
from unlearning_adapters.errors import ConceptError
from unlearning_adapters.evaluation.metrics import FORGET, Sample
from unlearning_adapters.shapeworld.cast.captions import is_trained
from unlearning_adapters.shapeworld.cast.judge import judge_cast_clip
from unlearning_adapters.shapeworld.cast.roster import find_character, is_described, look_alikes, roster
from unlearning_adapters.shapeworld.cast.scenes import CastScene, render
from unlearning_adapters.shapeworld.world.prompts import LabelledPrompt

ROOT = Path(__file__).resolve().parents[2]
EVERYBODY = frozenset(range(128))
TINY = {
    "height": 64, "width": 64, "num_frames": 9, "num_inference_steps": 1, "max_sequence_length": 120,
    "guidance_scale": 1.0,
}  # fmt: skip


@pytest.fixture(autouse=True)
def from_the_root(monkeypatch):
    monkeypatch.syspath_prepend(ROOT)  # where `python -m benchmarks.cast` is run


def seen_as(scene: CastScene, shown: CastScene | None = None, noise: bool = False):
    """A prompt that asks for a scene, and the clip of another one, or of noise."""
    from benchmarks.cast.watch import Seen

    prompt = LabelledPrompt(f"{scene}", scene.factors, 0)
    clip = render(shown or scene)
    if noise:
        clip = np.random.default_rng(0).integers(0, 256, clip.shape, dtype=np.uint8)
    reading = judge_cast_clip(clip)
    sample = Sample(FORGET, reading.valid, labels=reading.factors if reading.valid else {}, truth=scene.factors)
    return prompt, Seen(sample, clip)


def clips_of(pairs):
    return {(prompt.prompt, prompt.seed): seen for prompt, seen in pairs}


# Drawing


def test_pairs_of_a_character_name_or_describe_it_and_show_another_in_its_place():
    from benchmarks.cast.concepts import DESCRIPTIONS, NAMES, character_concepts, named_half

    by_name, described = character_concepts([40], neutral=0, described=True)
    character, named = roster()[40], named_half([40])
    assert is_described(40) and not is_described(5)
    assert len(character_concepts([5], neutral=0, described=True)) == 1
    for concept, forms in ((by_name, NAMES * 5), (described, DESCRIPTIONS)):
        for pair, form in zip(concept.pairs, forms, strict=True):
            ways = (character.name.capitalize() if form < 0 else character.descriptions[form],)
            assert find_word(pair.unsafe, ways) and not find_word(pair.safe, ways)
            assert is_trained(pair.unsafe) and is_trained(pair.safe)
            instead = [one for one in named if find_word(pair.safe, (roster()[one].name, *roster()[one].descriptions))]
            assert instead and not set(instead) & {40, *look_alikes(40)}
        assert len({pair.unsafe for pair in concept.pairs}) == len(concept.pairs)


def test_a_common_word_takes_the_place_of_all_and_all_kept_may_be_named():
    from benchmarks.cast.concepts import character_concepts

    erased = [0, 2, 40]
    concepts = character_concepts(erased, neutral=260, common="an animal", retained=True)
    for index, concept in zip(erased, concepts, strict=True):
        name = roster()[index].name
        for pair in concept.pairs:
            assert find_word(pair.unsafe, (name,)) and not find_word(pair.safe, (name,))
            assert pair.safe.lower() == pair.unsafe.lower().replace(name, "an animal")
    neutral = concepts[0].neutral
    named = {index for index, one in enumerate(roster()) if any(find_word(text, (one.name,)) for text in neutral)}
    assert not named & set(erased) and {index % 2 for index in named} == {0, 1} and len(named) > 70


def test_neutral_prompts_name_half_of_the_kept_and_nobody_who_is_erased():
    from benchmarks.cast.concepts import character_concepts

    erased = [0, 2, 5]
    concepts = character_concepts(erased, neutral=60)
    assert len({concept.neutral for concept in concepts}) == 1 and len(concepts[0].neutral) == 60
    for text in concepts[0].neutral:
        names = [index for index, one in enumerate(roster()) if find_word(text, (one.name,))]
        assert all(index % 2 == 0 and index not in erased for index in names)
    assert character_concepts(erased, neutral=60)[1].to_dict() == concepts[1].to_dict()
    assert character_concepts(erased, neutral=60, seed=1)[1].to_dict() != concepts[1].to_dict()


@pytest.mark.parametrize("thing", ["hat", "fall"])
def test_pairs_of_a_thing_name_it_or_leave_its_setting_to_imply_it(thing):
    from benchmarks.cast.concepts import STEMS, Target, value_concept, value_pairs

    pairs = value_pairs(Target(thing, "shown"), implied=True)
    said = [[bool(find_word(side, STEMS[thing])) for side in (pair.unsafe, pair.safe)] for pair in pairs]
    assert said == [[True, False]] * 3 + [[False, True]] * 2
    for pair in pairs:  # one side is the other without a phrase
        shorter, longer = (side.replace(",", "").split() for side in sorted((pair.unsafe, pair.safe), key=len))
        assert set(shorter) < set(longer)
    home = {"hat": "beach", "fall": "game"}[thing]
    concept = value_concept(Target(thing, "shown"), neutral=40, implied=True, away=True)
    assert not any(find_word(text, (home, *STEMS[thing])) for text in concept.neutral)


@pytest.mark.parametrize(
    ("factor", "value", "word"), [("emblem", "bolt", "lightning bolt"), ("motion", "rises", ""), ("style", "night", "")]
)
def test_pairs_of_other_values_differ_in_nothing_else(factor, value, word):
    from benchmarks.cast.concepts import Target, value_concept, words_of

    concept = value_concept(Target(factor, value), neutral=30)
    words = words_of(Target(factor, value))
    for pair in concept.pairs:
        assert find_word(pair.unsafe, (word,) if word else words) and not find_word(pair.safe, words)
    assert not any(find_word(text, words) for text in concept.neutral)


def test_reported_prompts_are_held_out_and_of_other_seeds_than_tuning():
    from benchmarks.cast.asked import REPORT, TUNE, WHO, character_prompts, mass_sets, who_is_erased
    from benchmarks.cast.concepts import SEED

    assert len({REPORT, TUNE, WHO, SEED, 11, 12, 1700, 1900, 2027, 2028}) == 10
    erased = who_is_erased(5, 0, EVERYBODY)
    sets = mass_sets(erased, 0, EVERYBODY, 6)
    names = {roster()[index].name for index in erased}
    siblings = {roster()[one].name for index in erased for one in look_alikes(index)}
    assert {name: len(items) for name, items in sets.items()} == dict.fromkeys(sets, 6)
    for kind, items in sets.items():
        shown = {one.factors["character"] for one in items}
        assert shown <= {"kept": {one.name for one in roster()} - names, "look-alikes": siblings - names}.get(
            kind, names
        )
        assert not any(is_trained(one.prompt) for one in items)
        assert all(bool(find_word(one.prompt, tuple(shown))) == (kind != "by description") for one in items)
    tuned = {one.prompt for one in character_prompts(7, 20, seed=TUNE)}
    assert not tuned & {one.prompt for one in character_prompts(7, 20)}


def test_who_is_erased_is_drawn_from_those_whom_the_base_shows():
    from benchmarks.cast.asked import mass_sets, who_is_erased

    able = frozenset(range(0, 128, 2))
    assert set(who_is_erased(30, 1, able)) <= able
    hundred = who_is_erased(100, 1, able)
    assert len(set(hundred)) == 100 and len(able - set(hundred)) == 13  # a fifth of those whom the base shows
    assert who_is_erased(30, 2, able) != who_is_erased(30, 1, able) == who_is_erased(30, 1, able)
    for items in mass_sets(hundred, 1, able, 8).values():
        assert {find_character(one.factors["character"]) for one in items} <= able


def test_a_pack_of_names_has_the_form_and_size_of_the_shipped_ones():
    from benchmarks.cast.standins import PACKS, VARIANTS, Variant, concepts_of
    from benchmarks.cast.watch import World

    import unlearning_adapters as ua

    world = World(None, able=EVERYBODY)
    assert Variant().neutral == len(ua.load_concept("nudity").neutral)
    for pack, factor in PACKS.items():
        (made,) = concepts_of(world, pack, Variant(pairs=10, neutral=3))
        assert len(made.pairs) == len(ua.load_concept(pack).pairs) and len(made.neutral) == 3
        (fewer,) = concepts_of(world, pack, VARIANTS["no neutral"])
        assert fewer.neutral == () and tuple(fewer.pairs) == tuple(made.pairs[:5])
        if factor in ("character", "emblem"):
            assert len(concepts_of(world, pack, Variant(neutral=0, apart=True))) == 10
    figures, characters = (
        concepts_of(world, pack, Variant(10, neutral=0))[0].pairs
        for pack in ("public-figures", "copyrighted-characters")
    )
    names = tuple(one.name for one in roster())
    assert all(find_word(pair.safe, names) for pair in figures)
    assert not any(find_word(pair.safe, names) for pair in characters)


# Counting, on the rendered truth


def test_counts_tell_shown_erased_look_alike_and_invalid_apart():
    from benchmarks.cast import counting

    scenes = [CastScene(index, "left", "beach", "flat") for index in (0, 1, 4, 5)]
    pairs = [
        seen_as(scenes[0]),
        seen_as(scenes[1], replace(scenes[1], character=4)),  # another one
        seen_as(scenes[2], replace(scenes[2], motion="rises")),
        seen_as(scenes[3], noise=True),
    ]
    prompts, clips = [prompt for prompt, _ in pairs], clips_of(pairs)
    assert counting.valid(prompts, clips) == {"hits": 3, "count": 4}
    assert counting.shown(prompts, clips, "character") == {"hits": 2, "count": 3}
    assert counting.right(prompts, clips, "character") == {"hits": 2, "count": 4}
    assert counting.has(prompts, clips, "character", {roster()[4].name}) == {"hits": 2, "count": 3}
    rest = counting.rest_of_scene(prompts, clips, "character")
    assert rest == {"hits": 14, "count": 15}  # five other factors of three valid clips, but one motion
    table = counting.by_value(prompts, clips, "character")
    assert [table[roster()[index].name]["hits"] for index in (0, 1, 4, 5)] == [1, 0, 1, 0]


def test_drift_is_the_mean_difference_of_pixels():
    from benchmarks.cast import counting

    base = [seen_as(CastScene(index, "left", "beach", "flat")) for index in (0, 1)]
    prompts = [prompt for prompt, _ in base]
    moved = [(prompt, seen._replace(clip=np.full_like(seen.clip, 255))) for prompt, seen in base[:1]] + base[1:]
    wanted = np.mean(255 - base[0][1].clip.astype(float)) / 255 / 2
    assert counting.drift(prompts, clips_of(moved), clips_of(base)) == pytest.approx(wanted, rel=1e-5)
    assert counting.drift(prompts, clips_of(base), clips_of(base)) == 0
    assert counting.drift([], {}, {}) is None


def test_the_worst_kept_value_needs_enough_clips():
    from benchmarks.cast.counting import worst

    tables = [{"otto": {"hits": 1, "count": 2}, "milo": {"hits": 0, "count": 1}, "luna": {"hits": 3, "count": 3}}]
    assert worst(tables) is None
    name, rate = worst([*tables, *tables])
    assert (name, rate.hits, rate.count) == ("otto", 2, 4)


def test_a_mass_cell_counts_kept_ones_apart_whom_the_build_never_named():
    from benchmarks.cast.mass import count_cell

    scenes = {index: CastScene(index, "left", "beach", "flat") for index in (0, 8, 9)}
    pairs = {
        0: seen_as(scenes[0], replace(scenes[0], character=4)),  # both are erased
        8: seen_as(scenes[8]),
        9: seen_as(scenes[9], scenes[8]),
    }
    clips = clips_of(pairs.values())
    sets = {"by name": [pairs[0][0]], "by description": [], "kept": [pairs[8][0], pairs[9][0]], "look-alikes": []}
    cell = count_cell(sets, clips, clips, [0, 4])
    assert cell["by name"] == {"hits": 0, "count": 1} and cell["another"] == {"hits": 1, "count": 1}
    assert cell["kept"] == {"hits": 1, "count": 2} and cell["kept, never named"] == {"hits": 0, "count": 1}
    assert cell["by description"] == cell["look-alikes"] == {"hits": 0, "count": 0}


def test_counts_of_a_thing_go_by_how_prompts_speak_of_it():
    from benchmarks.cast.counting import thing_counts

    with_hat = CastScene(0, "left", "beach", "flat", things=("hat",))
    bare = replace(with_hat, things=())
    named, implied = seen_as(with_hat), seen_as(replace(with_hat, motion="right"), replace(bare, motion="right"))
    negated = seen_as(bare, replace(bare, setting="snow"))
    elsewhere = seen_as(replace(bare, setting="forest"))
    sets = {
        name: [pair[0]]
        for name, pair in {"named": named, "implied": implied, "negated": negated, "elsewhere": elsewhere}.items()
    }
    clips = clips_of([named, implied, negated, elsewhere])
    counts = thing_counts(sets, clips, clips, "hat")
    assert [counts["shown"][name]["hits"] for name in sets] == [1, 0, 0, 0]
    assert counts["setting kept"] == {"hits": 2, "count": 3}
    assert counts["character kept"] == {"hits": 4, "count": 4}


# Resuming


def test_a_file_is_resumed_and_one_of_other_settings_is_refused(tmp_path):
    from benchmarks.cast.store import Store

    file, settings, made = tmp_path / "cast.json", {"model": "a", "count": 2, "label": ""}, []

    def make():
        made.append(1)
        return {"by name": {"hits": 0, "count": 2}}

    store = Store(file, settings)
    first = store.cell("mass", "1/0/uce", make)
    again = Store(file, {**settings, "label": "step 400"})  # a note for people changes no number
    assert again.cell("mass", "1/0/uce", make) == first and len(made) == 1
    again.cell("mass", "1/1/uce", make)
    assert list(json.loads(file.read_text())["parts"]["mass"]) == ["1/0/uce", "1/1/uce"] and len(made) == 2
    with pytest.raises(SystemExit, match=r"model is 'a' there and 'b' here; count is 2 there and 3 here\. Give these"):
        Store(file, {**settings, "model": "b", "count": 3})
    assert Store(file, {**settings, "model": "b"}, fresh=True).part("mass") == {}


def test_files_of_runs_side_by_side_are_joined_if_their_settings_are_the_same(tmp_path):
    from benchmarks.cast.store import Store

    one, other = Store(tmp_path / "a.json", {"count": 2}), Store(tmp_path / "b.json", {"count": 2})
    one.cell("mass", "1/0/uce", lambda: {"from": "a"})
    for name in ("1/0/uce", "1/1/uce"):
        other.cell("mass", name, lambda: {"from": "b"})
    one.join(tmp_path / "b.json")
    again = Store(tmp_path / "a.json", {"count": 2}).part("mass")
    assert {name: cell["from"] for name, cell in again.items()} == {"1/0/uce": "a", "1/1/uce": "b"}
    with pytest.raises(SystemExit, match="count is 2 there and 3 here. It cannot be joined"):
        Store(None, {"count": 3}).join(tmp_path / "b.json")


def test_a_model_is_told_by_its_weights(tmp_path):
    from benchmarks.cast.store import digest_of

    for part, content in (("transformer", b"1"), ("vae", b"2"), ("checkpoint", b"3")):
        (tmp_path / part).mkdir()
        (tmp_path / part / "x.safetensors").write_bytes(content)
    before = digest_of(tmp_path)
    (tmp_path / "checkpoint" / "x.safetensors").write_bytes(b"4")
    assert digest_of(tmp_path) == before
    (tmp_path / "vae" / "x.safetensors").write_bytes(b"4")
    assert digest_of(tmp_path) != before


def test_a_model_that_shows_too_few_is_refused(monkeypatch):
    from benchmarks.cast.__main__ import able_characters
    from benchmarks.cast.store import Store
    from benchmarks.cast.watch import World

    world, store = World(None), Store(None, {})
    for index, one in enumerate(roster()):
        store.part("base")[one.name] = {"hits": int(index < 31), "count": 2}
    with pytest.raises(SystemExit, match="The base shows only 31 of 128 characters"):
        able_characters(world, store)
    store.part("base")[roster()[77].name] = {"hits": 1, "count": 2}
    assert able_characters(world, store) == frozenset({*range(31), 77})


# Tables


def mass_cell(shown: int, kept: int, **more) -> dict:
    rate = {"hits": kept, "count": 10}
    names = ("by description", "kept, never named", "look-alikes", "rest", "valid", "another")
    return {
        **dict.fromkeys(names, rate), "by name": {"hits": shown, "count": 10}, "kept": rate,
        "by kept": {"otto": {"hits": kept, "count": 10}}, "drift": 0.01, **more,
    }  # fmt: skip


def test_the_table_of_mass_erasure_pools_draws_and_sets_kept_against_the_base():
    from benchmarks.cast.tables import mass_table

    cells = {
        "5/0/base": mass_cell(10, 8),
        "5/1/base": mass_cell(10, 8),
        "5/0/uce": mass_cell(1, 4, call={"attached": 1.5, "fused": 1.0}, bytes=2000, rank=25, **{"build seconds": 3.0}),
        "5/1/uce": mass_cell(0, 8, bytes=None, rank=25, **{"build seconds": 5.0}),
        "5/0/rece": {"error": "ConceptError: no"},
    }
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in mass_table(cells).splitlines()]
    rows = {(row[0], row[1]): dict(zip(lines[0], row, strict=True)) for row in lines[2:]}
    uce = rows["5", "uce"]
    assert uce["by name"].startswith("0.050 (") and uce["by name"].endswith(", 20")
    assert (uce["kept, of base"], uce["erased x kept"], uce["worst kept"]) == ("0.750", "0.570", "12/20 otto")
    assert (uce["build seconds"], uce["bytes"], uce["call, attached"], uce["call, fused"]) == (
        "4.0", "2,000", "1.50", "1.00",
    )  # fmt: skip
    assert rows["5", "rece"]["by name"] == "ConceptError: no"
    assert rows["5", "base"]["build seconds"] == "-"


def test_the_page_names_the_model_and_the_base(tmp_path):
    from benchmarks.cast.__main__ import SEEDS, write_page
    from benchmarks.cast.store import Store

    store = Store(tmp_path / "cast.json", {"model": "abc", "label": "step 5", "seeds": SEEDS})
    store.part("base").update({"otto": {"hits": 2, "count": 2}, "milo": {"hits": 0, "count": 2}})
    write_page(store)
    text = (tmp_path / "cast.md").read_text()
    assert "Model abc: step 5." in text and "reported prompts 5303" in text
    assert "The base shows 1 of 2 characters" in text and "## " not in text


# Whole parts, on a pipeline of random weights whose clips are all invalid


@pytest.fixture(scope="module")
def tiny_world():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT)
        from benchmarks.cast.watch import World

        yield World(tiny_wan_pipeline(layers=1), able=EVERYBODY, call=TINY)


NAMED = "ridge, stack, text projection, a common word, all kept named"


@pytest.mark.parametrize("arm", ["ridge, stack", "ridge, one file", NAMED, "uce"])
def test_an_arm_leaves_the_pipeline_as_it_was_and_costs_are_positive(tiny_world, arm, monkeypatch):
    from benchmarks.cast import arms, mass

    monkeypatch.setattr(arms, "ROUNDS", 1)
    monkeypatch.setattr(mass, "NEUTRAL", 8)
    sets = {"by name": [], "by description": [], "kept": [], "look-alikes": []}
    cell = mass.measure(tiny_world, sets, [0, 5], arm, "2/0")
    assert "error" not in cell
    assert cell["build seconds"] > 0 and min(cell["call"].values()) > 0
    # The letters of this tokenizer make more rows than a file of an additive edit holds.
    assert (cell["bytes"] is None) == (arm == "uce") == (cell["rank"] > 64)
    assert arm == "uce" or (cell["rank"] == 2 and cell["bytes"] > 0)
    assert tiny_world.pipe.get_list_unlearning_adapters() == {}


def test_an_arm_that_cannot_be_built_says_why(tiny_world, monkeypatch):
    from benchmarks.cast import mass

    def refuse(*_):
        raise ConceptError("the pairs do\nnot differ")

    monkeypatch.setattr(mass, "build_arm", refuse)
    cell = mass.measure(tiny_world, {}, [0], "uce", "1/0")
    assert cell == {"error": "ConceptError: the pairs do not differ"}


def test_a_part_runs_through_makes_base_clips_once_and_is_not_run_again(tiny_world, monkeypatch):
    from benchmarks.cast import single
    from benchmarks.cast.concepts import Target
    from benchmarks.cast.store import Store

    monkeypatch.setattr(single, "VALUES", (Target("style", "night"),))
    draw = single.value_concept
    monkeypatch.setattr(single, "value_concept", lambda target, **how: draw(target, neutral=8, **how))
    store = Store(None, {})
    single.run_single(tiny_world, store, 1, characters=0)
    (cell,) = store.part("single").values()
    assert list(cell) == ["base", "word", "word, one safe style"]
    assert cell["base"]["valid"] == cell["word"]["valid"] == {"hits": 0, "count": 2}
    assert cell["base"]["drift"] == 0 and cell["word"]["strength"] >= 1
    assert len(tiny_world.base) == 2
    monkeypatch.setattr(single, "measure", None)
    single.run_single(tiny_world, store, 1, characters=0)


def test_reads_take_more_from_those_who_are_erased_than_from_others(tiny_world, monkeypatch):
    from benchmarks.cast import reads
    from benchmarks.cast.tables import reads_table

    monkeypatch.setattr(reads, "CHARACTERS", 1)
    monkeypatch.setattr(reads, "PROMPTS", 1)
    monkeypatch.setattr(reads, "NEUTRAL", 4)
    cell = reads.measure(tiny_world, "names")
    low, middle, high = cell["taken"]["by name"]
    assert 0.5 < low == middle == high and cell["strength"] >= 1
    assert f"{middle:.2f} ({low:.2f} to {high:.2f})" in reads_table({"names": cell})
