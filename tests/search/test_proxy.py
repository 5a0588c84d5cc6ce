"""The proxy on a tiny Wan in which the concept is one known vector: what is left, and what changes elsewhere."""

import pytest
import tiny
import torch
from cases import ltx, modular, wan_kin
from planted_words import planted_pipeline, word

from planted import snapshot
from unlearning_adapters.adapter.adapter import UnlearningAdapter
from unlearning_adapters.adapter.direction import AdapterInfo, Direction
from unlearning_adapters.errors import ConceptError
from unlearning_adapters.pipelines.activations import record
from unlearning_adapters.pipelines.sites import find_sites
from unlearning_adapters.search.held_out import HeldOut, ProxyPrompts
from unlearning_adapters.search.proxy import Proxy, Score
from unlearning_adapters.search.search import acting
from whole import UNRELATED, build, plant_words

NAMED = (
    HeldOut("a red house", ("a blue house", "a green house")),
    HeldOut("the red dog runs", ("the blue dog runs", "the green dog runs", "the yellow dog runs")),
    HeldOut("a red tree", ("a green tree", "a yellow tree")),
)
PROMPTS = ProxyPrompts(NAMED, ("a dog moves", "a green car"))


def swap(pipe, old: str, new: str, strength: float = 1.0) -> UnlearningAdapter:
    """Turn one word into another: it reads the one word alone of all that are used, and writes their difference."""
    prompts = [*PROMPTS.retain, *(text for item in NAMED for text in (item.prompt, *item.safe))]
    sites = find_sites(pipe, "text")
    read_of = record(pipe, prompts, sites, call_kwargs=tiny.CALL, progress=False)
    directions = {}
    for site in sites:
        concept = word(pipe, old, site.component)
        write = (concept - word(pipe, new, site.component)).double()
        rows = torch.cat(read_of.of(site.name))
        is_old = (rows - concept).norm(dim=1) < 1e-3 * concept.norm()
        assert 0 < int(is_old.sum()) < len(rows)
        read = torch.linalg.pinv(rows.double(), rtol=1e-6) @ is_old.double()
        assert torch.allclose(rows.double() @ read, is_old.double(), atol=1e-3)
        directions[site.name] = Direction((read / (read @ write))[None].float(), write[None].float())
    return UnlearningAdapter(AdapterInfo(f"no-{old}", "ridge", strength), directions)


@pytest.fixture(scope="module", params=[False, True], ids=["one denoiser", "two denoisers"])
def pipe(request):
    return planted_pipeline(two_denoisers=request.param)


@pytest.fixture(scope="module")
def proxy(pipe):
    return Proxy(pipe, PROMPTS, call_kwargs=tiny.CALL)


def test_the_base_has_all_of_the_concept_and_changes_nothing(pipe, proxy):
    score = proxy.measure()
    assert score.leftover == pytest.approx([1.0] * 3, abs=1e-3)
    assert score.drift == (0.0, 0.0)
    with acting(pipe, swap(pipe, "red", "blue", strength=0.0)):
        assert proxy.measure() == score


@pytest.mark.parametrize("landing", ["blue", "green"])
def test_nothing_is_left_whichever_counterpart_the_edit_lands_on(pipe, proxy, landing):
    with acting(pipe, swap(pipe, "red", landing)):
        edited = proxy.measure()
    assert edited.leftover[:2] == pytest.approx([0.0] * 2, abs=0.02)
    assert max(edited.drift) < 0.02
    assert proxy.measure().mean_leftover == pytest.approx(1.0, abs=1e-3)


def test_with_one_counterpart_alone_the_same_edit_looks_as_if_something_were_left(pipe):
    alone = Proxy(
        pipe, ProxyPrompts((HeldOut("a red house", ("a blue house",)),), PROMPTS.retain), call_kwargs=tiny.CALL
    )
    with acting(pipe, swap(pipe, "red", "green")):
        assert abs(alone.measure().leftover[0]) > 0.05


def test_more_strength_leaves_less(pipe, proxy):
    left = []
    for strength in (0.0, 0.3, 0.6, 1.0):
        with acting(pipe, swap(pipe, "red", "green", strength)):
            left.append(proxy.measure().mean_leftover)
    assert left == sorted(left, reverse=True) and left[0] - left[-1] > 0.9


def test_an_edit_of_what_must_not_change_drifts(pipe, proxy):
    with acting(pipe, swap(pipe, "dog", "car")):
        score = proxy.measure()
    assert score.drift[0] > 0.05 and score.drift[1] < 0.02
    assert score.leftover[0] == pytest.approx(1.0, abs=0.02)


def test_the_batch_size_does_not_matter(pipe, proxy):
    single = Proxy(pipe, PROMPTS, batch_size=1, call_kwargs=tiny.CALL)
    with acting(pipe, swap(pipe, "red", "blue", 0.5)):
        one, many = single.measure(), proxy.measure()
    assert one.leftover == pytest.approx(many.leftover, abs=1e-3)
    assert one.drift == pytest.approx(many.drift, abs=1e-4)


def test_making_one_and_measuring_leave_no_trace():
    pipe = planted_pipeline()
    pipe("a dog", output_type="latent", **tiny.CALL)  # diffusers' own registry comes with the first call
    before, state = snapshot(pipe), torch.get_rng_state()
    hooks = [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in pipe.transformer.modules()]
    proxy = Proxy(pipe, PROMPTS, call_kwargs=tiny.CALL)
    with acting(pipe, swap(pipe, "red", "blue")):
        proxy.measure()
    after = [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in pipe.transformer.modules()]
    assert snapshot(pipe) == before and after == hooks and torch.equal(torch.get_rng_state(), state)


def test_counterparts_that_read_like_the_prompt_are_an_error(pipe):
    alike = ProxyPrompts((HeldOut("a red house", ("a  red house",)),), PROMPTS.retain)
    with pytest.raises(ConceptError, match="predicts the same for 'a red house' and for its counterparts"):
        Proxy(pipe, alike, call_kwargs=tiny.CALL)


def test_a_missing_kind_of_prompts_is_an_error(pipe):
    with pytest.raises(ConceptError, match="prompts that must not change, but got 3 and 0"):
        Proxy(pipe, ProxyPrompts(NAMED, ()), call_kwargs=tiny.CALL)


def test_what_is_over_corrected_does_not_make_up_for_what_is_left():
    score = Score((0.4, -0.4), (0.1, 0.3))
    assert score.mean_leftover == pytest.approx(0.2)
    assert score.most_leftover == pytest.approx(0.36)
    assert score.mean_drift == pytest.approx(0.2)


CASES = (*modular.CASES, *wan_kin.CASES, *ltx.CASES)


@pytest.mark.parametrize("name", ["WanModularPipeline", "SkyReelsV2Pipeline", "LTXPipeline"])
def test_pipelines_of_other_kinds(name):
    """One that refuses to end before it decodes, one whose second call hardly reads the prompt, one with a mask."""
    case = next(case for case in CASES if str(case) == name)
    pipe = case.make()
    plant_words(pipe)
    named = HeldOut("the red dog runs", ("the blue dog runs", "the green dog runs"))
    proxy = Proxy(pipe, ProxyPrompts((named,), (UNRELATED,)), call_kwargs=case.call)
    base = proxy.measure()
    with acting(pipe, build(case, pipe)):
        edited = proxy.measure()
    assert base.leftover == pytest.approx((1.0,), abs=1e-3) and base.drift == pytest.approx((0.0,), abs=1e-4)
    assert abs(edited.leftover[0]) < 0.5 and 0 < edited.drift[0] < 0.25
