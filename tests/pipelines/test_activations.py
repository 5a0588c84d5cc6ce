"""What sites read: recorded through the user's own pipeline, and nothing left behind."""

import copy
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import tiny
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from packed import packed_pipeline
from peft import LoraConfig
from PIL import Image
from tiny import KEY, PROMPTS, generate
from traces import count_hooks, plain_state

from unlearning_adapters.errors import ConfigError, DenoiserError, SiteError
from unlearning_adapters.pipelines.activations import record
from unlearning_adapters.pipelines.probes import find_shared_inputs, measure_sites
from unlearning_adapters.pipelines.sites import find_sites

OUT = "transformer.blocks.1.attn1.to_out.0"


def text_stream(pipe, prompt: str) -> torch.Tensor:
    """What all text sites of Wan read, computed without the denoiser's forward pass."""
    with torch.no_grad():
        embeddings = pipe.encode_prompt(prompt, max_sequence_length=512)[0]
        return pipe.transformer.condition_embedder.text_embedder(embeddings)[0]


def test_rows_are_what_the_sites_read():
    pipe = tiny.tiny_wan_pipeline()
    recording = record(pipe, PROMPTS, find_sites(pipe), batch_size=2, progress=False)
    assert len(recording.of(KEY)) == len(PROMPTS)
    for prompt, rows in zip(PROMPTS, recording.of(KEY), strict=True):
        stream = text_stream(pipe, prompt)
        words = len(pipe.tokenizer(prompt).input_ids)
        torch.testing.assert_close(rows, stream[: words + 1], rtol=1e-4, atol=1e-5)  # all padding is one row
        assert rows.dtype == torch.float32 and not rows.requires_grad


def test_sites_fed_by_one_tensor_share_a_group():
    pipe = tiny.tiny_wan_pipeline(two_denoisers=True)
    sites = find_sites(pipe)
    recording = record(pipe, PROMPTS[:2], sites, progress=False)
    assert recording.groups == {site.name: int(site.component == "transformer_2") for site in sites}
    assert recording.members(1) == [site.name for site in sites if site.component == "transformer_2"]
    assert not torch.equal(recording.rows[0][0], recording.rows[1][0])
    hidden = find_sites(pipe, ["transformer.blocks.0.attn1.to_*", "transformer.blocks.0.ffn.net.0.proj"])
    groups = record(pipe, PROMPTS[:2], hidden, call_kwargs=tiny.CALL, progress=False).groups
    grouped = [groups[f"transformer.blocks.0.{name}"] for name in ("attn1.to_q", "attn1.to_k", "attn1.to_v")]
    assert len(set(grouped)) == 1 and len(set(groups.values())) == 3


def calls_to_the_end(pipe) -> Counter[str]:
    """Count the calls of the last block of each of two denoisers from now on."""
    calls: Counter[str] = Counter()
    for name in ("transformer", "transformer_2"):
        last = getattr(pipe, name).blocks[-1]
        last.register_forward_hook(lambda *_args, name=name: calls.update([name]))
    return calls


@pytest.mark.parametrize("wrapped", [False, True])
def test_two_experts_are_read_without_running_the_first_to_its_end(wrapped):
    pipe = tiny.tiny_wan_pipeline(two_denoisers=True)
    sites = find_sites(pipe)
    alone = [record(copy.deepcopy(pipe), [prompt], sites, padded=True, progress=False) for prompt in PROMPTS]
    if wrapped:  # by somebody else, who may count on each forward to end
        pipe.transformer.forward = pipe.transformer.forward
    calls = calls_to_the_end(pipe)
    together = record(pipe, PROMPTS, sites, batch_size=1, padded=True, progress=False)
    assert calls["transformer"] == (len(PROMPTS) if wrapped else 1)  # one whole call shows the form of the output
    assert ("forward" in vars(pipe.transformer)) == wrapped and "forward" not in vars(pipe.transformer_2)
    for group, rows in enumerate(together.rows):
        for one, other in zip(rows, alone, strict=True):
            assert torch.equal(one, other.rows[group][0])


def test_two_threads_read_two_experts_at_once():
    pipe = tiny.tiny_wan_pipeline(two_denoisers=True)
    sites = find_sites(pipe)
    alone = record(copy.deepcopy(pipe), PROMPTS, sites, batch_size=1, progress=False)
    with ThreadPoolExecutor(3) as pool:
        jobs = [pool.submit(record, pipe, PROMPTS, sites, batch_size=1, progress=False) for _ in range(3)]
        together = [job.result() for job in jobs]
    for recording in together:
        for rows, others in zip(recording.rows, alone.rows, strict=True):
            assert all(torch.equal(one, other) for one, other in zip(rows, others, strict=True))
    assert "forward" not in vars(pipe.transformer) and "forward" not in vars(pipe.transformer_2)


def test_a_probe_of_shared_inputs_shows_the_form_of_the_output_as_well():
    pipe = tiny.tiny_wan_pipeline(two_denoisers=True)
    sites = find_sites(pipe)
    leaders = find_shared_inputs(pipe, sites, PROMPTS[0]).leaders
    calls = calls_to_the_end(pipe)
    record(pipe, PROMPTS, sites, leaders=leaders, batch_size=2, padded=True, progress=False)
    assert not calls


@pytest.mark.parametrize("selection", ["text", "hidden"])
def test_the_batch_size_does_not_matter(selection):
    pipe = tiny.tiny_wan_pipeline()
    sites = find_sites(pipe, selection)
    one, many = (
        record(pipe, PROMPTS, sites, batch_size=size, steps=2, call_kwargs=tiny.CALL, progress=False) for size in (1, 4)
    )
    assert one.groups == many.groups
    for left, right in zip(one.rows, many.rows, strict=True):
        for a, b in zip(left, right, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_text_rows_do_not_depend_on_seed_or_size_and_hidden_rows_do():
    pipe = tiny.tiny_wan_pipeline()
    for selection, name, same in (("text", KEY, True), ("hidden", OUT, False)):
        sites = find_sites(pipe, selection)
        rows = [
            record(pipe, PROMPTS[:1], sites, seed=seed, call_kwargs=tiny.CALL, progress=False).of(name)[0]
            for seed in (0, 1)
        ]
        assert torch.equal(*rows) == same
    large = {**tiny.CALL, "height": 64, "num_frames": 9, "max_sequence_length": 512}
    wide = record(pipe, PROMPTS[:1], find_sites(pipe), call_kwargs=large, progress=False).of(KEY)[0]
    torch.testing.assert_close(wide, record(pipe, PROMPTS[:1], find_sites(pipe), progress=False).of(KEY)[0])


def test_hidden_rows_come_from_the_first_steps_and_both_sides_share_the_noise():
    pipe = tiny.tiny_wan_pipeline()
    sites = find_sites(pipe, OUT)
    call = {**tiny.CALL, "num_inference_steps": 4}
    one, two = (record(pipe, PROMPTS[:1], sites, steps=steps, call_kwargs=call, progress=False) for steps in (1, 2))
    tokens = 2  # 2 latent frames of one patch each
    assert [len(recording.of(OUT)[0]) for recording in (one, two)] == [tokens, 2 * tokens]
    assert torch.equal(one.of(OUT)[0], two.of(OUT)[0][:tokens])
    same = record(pipe, PROMPTS[:1] * 2, sites, seed=[3, 3], call_kwargs=call, progress=False).of(OUT)
    torch.testing.assert_close(same[0], same[1])


def test_few_text_rows_are_those_that_differ_most():
    pipe = tiny.tiny_wan_pipeline()
    sites = find_sites(pipe)
    whole = record(pipe, PROMPTS[:2], sites, progress=False).of(KEY)
    thin = record(pipe, PROMPTS[:2], sites, max_rows=4, progress=False).of(KEY)
    for rows, few in zip(whole, thin, strict=True):
        kept = [index for index, row in enumerate(rows) if (few == row).all(dim=1).any()]
        assert len(kept) == len(few) == 4 and kept[0] == 0
        assert torch.equal(few, rows[kept])  # in order
        reach = torch.cdist(rows, few).amin(dim=1).max()
        apart = torch.cdist(few, few).fill_diagonal_(torch.inf).min()
        assert reach <= apart * 1.001  # what was left out is nearer to a kept row than kept rows are to each other


def test_hidden_rows_are_thinned_evenly():
    pipe = tiny.tiny_wan_pipeline()
    sites = find_sites(pipe, OUT)
    call = {**tiny.CALL, "height": 64, "width": 64}
    (whole,) = record(pipe, PROMPTS[:1], sites, call_kwargs=call, progress=False).of(OUT)
    (thin,) = record(pipe, PROMPTS[:1], sites, max_rows=3, call_kwargs=call, progress=False).of(OUT)
    assert torch.equal(thin, whole[[0, round((len(whole) - 1) / 2), len(whole) - 1]])


@pytest.mark.parametrize("selection", ["text", "hidden"])
def test_nothing_is_left_behind(selection):
    pipe = tiny.tiny_wan_pipeline(two_denoisers=True)
    pipe.set_progress_bar_config(desc="mine", disable=True)
    before = generate(pipe)
    state, hooks, random_state = copy.deepcopy(plain_state(pipe)), count_hooks(pipe), torch.get_rng_state()
    sites = find_sites(pipe, selection)
    record(
        pipe, PROMPTS, sites, batch_size=2, steps=1, call_kwargs={**tiny.CALL, "num_inference_steps": 4}, progress=False
    )
    assert plain_state(pipe) == state
    assert count_hooks(pipe) == hooks
    assert torch.equal(torch.get_rng_state(), random_state)
    assert torch.equal(generate(pipe), before)


def test_nothing_is_left_behind_by_a_first_call():
    pipe = tiny.tiny_wan_pipeline()
    state = copy.deepcopy(plain_state(pipe))
    record(pipe, PROMPTS[:1], find_sites(pipe), progress=False)
    assert plain_state(pipe) == state


@pytest.mark.parametrize("selection", ["text", "hidden"])
def test_nothing_is_left_behind_when_the_pipeline_raises(selection):
    pipe = tiny.tiny_wan_pipeline()
    calls = []

    def fail(*_):
        calls.append(1)
        if len(calls) >= 2:
            raise RuntimeError("out of memory, or so")

    sites = find_sites(pipe, selection)
    target = pipe.text_encoder if selection == "text" else pipe.transformer.blocks[1].attn1
    handle = target.register_forward_hook(fail)
    state, hooks, random_state = copy.deepcopy(plain_state(pipe)), count_hooks(pipe), torch.get_rng_state()
    with pytest.raises(RuntimeError, match="out of memory, or so"):
        record(pipe, PROMPTS, sites, batch_size=2, steps=3, call_kwargs=tiny.CALL, progress=False)
    assert len(calls) == (2 if selection == "text" else 5)  # a batch is tried again with padding, and one by one
    assert plain_state(pipe) == state
    assert count_hooks(pipe) == hooks
    assert torch.equal(torch.get_rng_state(), random_state)
    handle.remove()
    assert len(record(pipe, PROMPTS, sites, call_kwargs=tiny.CALL, progress=False).rows[0]) == len(PROMPTS)


def test_one_partial_call_of_the_denoiser_is_enough_for_text_sites():
    pipe = tiny.tiny_wan_pipeline()
    calls = {"text encoder": 0, "first block": 0, "last feed-forward": 0, "vae": 0}

    def count(name):
        return lambda *_: calls.update({name: calls[name] + 1})

    handles = [
        pipe.text_encoder.register_forward_hook(count("text encoder")),
        pipe.transformer.blocks[0].register_forward_hook(count("first block")),
        pipe.transformer.blocks[1].ffn.register_forward_hook(count("last feed-forward")),
        pipe.vae.decoder.register_forward_hook(count("vae")),
    ]
    record(pipe, PROMPTS, find_sites(pipe), batch_size=3, progress=False)
    # Of the second batch only the first site is watched, and there the run ends.
    assert calls == {"text encoder": 2, "first block": 1, "last feed-forward": 0, "vae": 0}
    for handle in handles:
        handle.remove()


def test_guidance_is_off_whatever_the_caller_passes():
    pipe = tiny.tiny_wan_pipeline()
    sites = find_sites(pipe)
    guided = {**tiny.CALL, "guidance_scale": 7.0, "negative_prompt": "a blue dog"}
    rows = record(pipe, PROMPTS, sites, call_kwargs=guided, progress=False).of(KEY)
    plain = record(pipe, PROMPTS, sites, call_kwargs=tiny.CALL, progress=False).of(KEY)
    assert all(torch.equal(a, b) for a, b in zip(rows, plain, strict=True))


def test_a_lora_and_a_compiled_denoiser_are_recorded_alike():
    pipe = tiny.tiny_wan_pipeline()
    sites = find_sites(pipe)
    before = record(pipe, PROMPTS[:2], sites, progress=False)
    pipe.transformer.add_adapter(LoraConfig(r=2, target_modules=["to_k", "to_v"]))
    with_lora = record(pipe, PROMPTS[:2], sites, progress=False)
    original = pipe.transformer
    pipe.transformer = torch.compile(original, backend="eager")
    generate(pipe)  # compiled without hooks: from here on hooks are only seen by the uncompiled code
    compiled = record(pipe, PROMPTS[:2], sites, progress=False)
    for other in (with_lora, compiled):
        assert other.groups == before.groups
        assert all(torch.equal(a, b) for a, b in zip(other.rows[0], before.rows[0], strict=True))


def test_pictures_reach_an_image_to_video_pipeline():
    pipe = tiny.tiny_wan_image_pipeline()
    noise = np.random.default_rng(0).integers(0, 255, (2, 16, 16, 3), dtype=np.uint8)
    pictures = [Image.fromarray(pixels) for pixels in noise]
    sites = find_sites(pipe, OUT)
    prompts = PROMPTS[:1] * 2
    shown = record(pipe, prompts, sites, images=pictures, seed=[0, 0], call_kwargs=tiny.CALL, progress=False).of(OUT)
    assert not torch.allclose(shown[0], shown[1])
    swapped = record(
        pipe, prompts, sites, images=pictures[::-1], seed=[0, 0], call_kwargs=tiny.CALL, progress=False
    ).of(OUT)
    assert torch.equal(swapped[0], shown[1])
    # Text sites need no picture: a grey one is made where the pipeline demands one.
    assert len(record(pipe, PROMPTS, find_sites(pipe), progress=False).of(KEY)) == len(PROMPTS)


def test_a_picture_is_ignored_by_a_pipeline_that_takes_none():
    pipe = tiny.tiny_wan_pipeline()
    rows = record(pipe, PROMPTS[:1], find_sites(pipe), images=["no such file.png"], progress=False)
    assert torch.equal(rows.of(KEY)[0], record(pipe, PROMPTS[:1], find_sites(pipe), progress=False).of(KEY)[0])


def test_prompts_that_are_packed_to_one_sequence_are_recorded_one_by_one():
    pipe = packed_pipeline()
    sites = find_sites(pipe, "*.words")
    rows = record(pipe, PROMPTS, sites, progress=False).of("transformer.layers.0.words")
    assert [len(found) for found in rows] == [len(set(prompt.split())) for prompt in PROMPTS]


def test_measurement_finds_the_text_sites_that_structure_finds():
    for pipe in (tiny.tiny_wan_pipeline(), tiny.tiny_wan_pipeline(two_denoisers=True), tiny.tiny_wan_image_pipeline()):
        measured = measure_sites(pipe, "text")
        assert [site for site in measured if site.block is not None] == list(find_sites(pipe))
        in_front = {site.module for site in measured if site.block is None}
        assert in_front == {f"condition_embedder.text_embedder.linear_{number}" for number in (1, 2)}


def test_measurement_needs_no_known_structure_and_leaves_nothing_behind():
    pipe = packed_pipeline()
    hooks, random_state = count_hooks(pipe), torch.get_rng_state()
    with pytest.raises(SiteError, match="No text site was found"):
        find_sites(pipe)
    assert [site.module for site in measure_sites(pipe, "text")] == ["refine", "layers.0.words", "layers.1.words"]
    assert count_hooks(pipe) == hooks
    assert torch.equal(torch.get_rng_state(), random_state)


def test_bad_calls_are_refused():
    pipe = tiny.tiny_wan_pipeline(two_denoisers=True)
    sites = find_sites(pipe)
    with pytest.raises(
        ConfigError, match=r"Unknown key 'hieght' in call_kwargs for WanPipeline\. Did you mean 'height'"
    ):
        record(pipe, PROMPTS, sites, call_kwargs={"hieght": 16})
    with pytest.raises(ConfigError, match="got 0 prompts and 8 sites"):
        record(pipe, [], sites)
    with pytest.raises(ConfigError, match="got 5 prompts and 0 sites"):
        record(pipe, PROMPTS, [])
    with pytest.raises(SiteError, match=r"4 of 8 sites were never called .* 'transformer_2\.blocks\.0\.attn2\.to_k'"):
        record(pipe, PROMPTS, sites, call_kwargs={"num_inference_steps": 1}, progress=False)
    assert count_hooks(pipe) == 0


def test_a_cache_that_skips_blocks_is_refused():
    from diffusers import FirstBlockCacheConfig

    pipe = tiny.tiny_wan_pipeline()
    pipe.transformer.enable_cache(FirstBlockCacheConfig(threshold=0.2))
    with pytest.raises(DenoiserError, match=r"cache that skips blocks.*pipe\.transformer\.disable_cache\(\) first"):
        record(pipe, PROMPTS, find_sites(pipe, "hidden"), steps=2, progress=False)


def test_any_scheduler_is_left_as_it_was():
    pipe = tiny.tiny_wan_pipeline()
    pipe.scheduler = FlowMatchEulerDiscreteScheduler(shift=7.0)
    pipe.scheduler.set_timesteps(5)
    timesteps, config = pipe.scheduler.timesteps.clone(), pipe.scheduler.config
    record(pipe, PROMPTS[:1], find_sites(pipe, "hidden"), steps=2, call_kwargs=tiny.CALL, progress=False)
    assert torch.equal(pipe.scheduler.timesteps, timesteps)
    assert pipe.scheduler.config is config
