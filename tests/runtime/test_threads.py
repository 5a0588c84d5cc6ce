"""Verbs, calls and builds of several threads: none is lost, none is half done, and none meets what another one does."""

import asyncio
import threading
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures import TimeoutError as StillRunning
from typing import Any

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, WanPipeline
from peft import LoraConfig, get_peft_model
from tiny import CALL, tiny_wan_pipeline
from torch import Tensor, nn
from traces import count_hooks

import unlearning_adapters as ua
from planted import bits, lora_that_reads, output, planted, snapshot
from unlearning_adapters.errors import AdapterNameError, ConfigError, DenoiserError, FuseError
from unlearning_adapters.pipelines.running.call_lock import changing, lock_of, reading

SOON = 20.0  # seconds within which what must happen does; nothing waits for so long
CONCEPT = ua.Concept(
    "no-red",
    pairs=[ua.Pair(unsafe=f"a red {noun}", safe=f"a blue {noun}") for noun in ("car", "cat", "dog", "house")],
    neutral=["a dog runs", "the car", "a cat sits", "the house"],
)


@pytest.fixture
def pipe() -> WanPipeline:
    return tiny_wan_pipeline(layers=1)


def run(pipe: Any, **options: Any) -> Tensor:
    arguments = {**CALL, "output_type": "latent", "generator": torch.Generator().manual_seed(0), **options}
    return pipe("the red dog runs", **arguments).frames


def build(pipe: Any) -> ua.UnlearningAdapter:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return ua.build_adapter(pipe, CONCEPT, progress=False, call_kwargs={"max_sequence_length": 16})


def sharing(pipe: WanPipeline, **others: Any) -> WanPipeline:
    """A pipeline of the same networks, with a scheduler of its own, as a server has one for each worker."""
    parts = {name: part for name, part in pipe.components.items() if part is not None}
    other = WanPipeline(**{**parts, "scheduler": FlowMatchEulerDiscreteScheduler(shift=3.0), **others})
    other.set_progress_bar_config(disable=True)
    return other


def compiled(pipe: WanPipeline, how: str) -> None:
    if how == "whole":
        pipe.transformer.compile(backend="eager")
    elif how == "wrapped":
        pipe.transformer = torch.compile(pipe.transformer, backend="eager")
    else:
        pipe.transformer.compile_repeated_blocks(backend="eager")


class Stopped:
    """A call in a thread of its own that stands still after its first step until it is told to go on."""

    def __init__(self, pipe: Any, at_step: Callable[[], None] | None = None) -> None:
        self.inside, self.go_on, self.at_step = threading.Event(), threading.Event(), at_step
        self.pool = ThreadPoolExecutor(1)
        self.result = self.pool.submit(run, pipe, callback_on_step_end=self._step)
        assert self.inside.wait(SOON)

    def _step(self, _pipe: Any, step: int, _time: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        if step == 0:
            self.inside.set()
            assert self.go_on.wait(SOON)
            if self.at_step is not None:
                self.at_step()
        return tensors

    def output(self) -> Tensor:
        self.go_on.set()
        found = self.result.result(SOON)
        self.pool.shutdown()
        return found


def in_thread(action: Callable[[], Any]) -> Any:
    """Start an action in a thread of its own; its result is a future."""
    pool = ThreadPoolExecutor(1)
    future = pool.submit(action)
    pool.shutdown(wait=False)
    return future


def is_waiting(future: Any) -> bool:
    """Whether something is still not done after a while."""
    try:
        future.exception(0.3)
    except StillRunning:
        return True
    return False


@pytest.mark.parametrize("before", [0, 1])
def test_adapters_that_several_threads_load_at_once_all_act(before: int) -> None:
    words = ("red", "green", "blue", "black")
    for _ in range(5):
        pipe = tiny_wan_pipeline(layers=1)
        made = {word: planted(pipe, word, seed=number) for number, word in enumerate(words)}
        for number in range(before):
            pipe.load_unlearning_adapter(planted(pipe, f"first{number}", seed=9))
        start = threading.Barrier(len(words))

        def load(word: str, pipe: Any = pipe, made: Any = made, start: Any = start) -> str:
            start.wait()
            return pipe.load_unlearning_adapter(made[word])

        with ThreadPoolExecutor(len(words)) as pool:
            assert sorted(pool.map(load, words)) == sorted(words)
        assert len(pipe.get_active_unlearning_adapters()) == len(words) + before
        alone = tiny_wan_pipeline(layers=1)
        for number, word in enumerate(words):
            alone.load_unlearning_adapter(planted(alone, word, seed=number))
        if not before:
            assert torch.equal(output(pipe), output(alone)), "as if one thread had loaded them"


def test_a_name_that_two_threads_want_goes_to_one_of_them(pipe: WanPipeline) -> None:
    red, start = planted(pipe), threading.Barrier(4)

    def load(_: int) -> bool:
        start.wait()
        try:
            pipe.load_unlearning_adapter(red, "same")
        except AdapterNameError:
            return False
        return True

    with ThreadPoolExecutor(4) as pool:
        assert sorted(pool.map(load, range(4))) == [False, False, False, True]
    assert pipe.get_list_unlearning_adapters() == {"transformer": ["same"]}


def test_verbs_beside_a_served_pipeline_leave_the_base_and_break_no_call(pipe: WanPipeline) -> None:
    red, base, before = planted(pipe), run(pipe), snapshot(pipe)
    stop, outputs = threading.Event(), []

    def serve() -> None:
        while not stop.is_set():
            outputs.append(run(pipe))

    served = in_thread(serve)
    for _ in range(10):
        pipe.load_unlearning_adapter(red)
        pipe.fuse_unlearning_adapters()
        pipe.unfuse_unlearning_adapters()
        pipe.unload_unlearning_adapters()
    stop.set()
    served.result(SOON)
    assert torch.equal(run(pipe), base)
    after = snapshot(pipe)
    assert {key for key in before if key.endswith(":") and before[key] != after[key]} == set()
    pipe.load_unlearning_adapter(red)
    edited = run(pipe)
    assert not torch.allclose(edited, base, atol=1e-4) and len(outputs) > 5
    for each in outputs:
        assert torch.allclose(each, base, atol=1e-6) or torch.allclose(each, edited, atol=1e-5), "of no state"


@pytest.mark.parametrize("verb", ["load", "set", "fuse", "unload"])
def test_a_verb_waits_for_the_end_of_a_running_call_which_keeps_its_state(pipe: WanPipeline, verb: str) -> None:
    red, base = planted(pipe), run(pipe)
    if verb != "load":
        pipe.load_unlearning_adapter(red)
    now, weight = run(pipe), pipe.transformer.blocks[0].attn2.to_k.weight.clone()
    call = Stopped(pipe)
    change = in_thread(
        {
            "load": lambda: pipe.load_unlearning_adapter(red),
            "set": lambda: pipe.set_unlearning_adapters("red", 0.3),
            "fuse": pipe.fuse_unlearning_adapters,
            "unload": pipe.unload_unlearning_adapters,
        }[verb]
    )
    assert is_waiting(change)
    assert torch.equal(call.output(), now), "all steps are of one state"
    change.result(SOON)
    after = run(pipe)
    if verb == "fuse":
        assert torch.allclose(after, now, atol=1e-5)
        assert not torch.equal(pipe.transformer.blocks[0].attn2.to_k.weight, weight), (
            "and the weight holds the edit now"
        )
    else:
        assert not torch.allclose(after, now, atol=1e-4) and torch.equal(after, base) == (verb == "unload")


def test_a_call_that_begins_while_a_verb_waits_has_the_state_after_it(pipe: WanPipeline) -> None:
    red, base, other = planted(pipe), run(pipe), sharing(pipe)
    call = Stopped(pipe)
    change = in_thread(lambda: pipe.load_unlearning_adapter(red))
    assert is_waiting(change)
    later = in_thread(lambda: run(other))
    assert is_waiting(later), "calls that begin now wait for the verb"
    assert torch.equal(call.output(), base)
    change.result(SOON)
    assert torch.equal(later.result(SOON), run(pipe)) and not torch.allclose(run(pipe), base, atol=1e-4)


def test_a_verb_on_another_denoiser_does_not_wait(pipe: WanPipeline) -> None:
    other = tiny_wan_pipeline(layers=1, seed=3)
    parts = {name: part for name, part in pipe.components.items() if part is not None and name != "transformer"}
    other = sharing(other, **{name: part for name, part in parts.items() if name != "scheduler"})
    assert other.text_encoder is pipe.text_encoder
    call = Stopped(pipe)
    in_thread(lambda: other.load_unlearning_adapter(planted(other))).result(SOON)
    call.output()


def test_a_call_may_change_its_own_state_from_a_callback(pipe: WanPipeline) -> None:
    red, base = planted(pipe), run(pipe)
    call = Stopped(pipe, lambda: pipe.load_unlearning_adapter(red))
    mixed = call.output()
    assert not torch.allclose(mixed, base, atol=1e-4) and not torch.allclose(mixed, run(pipe), atol=1e-4)


def test_two_calls_that_both_change_the_state_from_callbacks_do_not_wait_for_each_other(pipe: WanPipeline) -> None:
    red, other = planted(pipe), sharing(pipe)
    pipe.load_unlearning_adapter(red)
    calls = [Stopped(each, lambda each=each: each.set_unlearning_adapters("red", 0.5)) for each in (pipe, other)]
    for call in calls:
        call.go_on.set()
    for call in calls:
        call.output()
    assert pipe.get_unlearning_adapters_info()["red"].strength == 0.5


def test_a_call_that_fails_holds_no_lock(pipe: WanPipeline) -> None:
    def fail() -> None:
        raise KeyboardInterrupt

    call = Stopped(pipe, fail)
    with pytest.raises(KeyboardInterrupt):
        call.output()
    in_thread(lambda: pipe.load_unlearning_adapter(planted(pipe))).result(SOON)
    assert pipe.get_active_unlearning_adapters() == ["red"]


def test_a_verb_that_fails_holds_no_lock(pipe: WanPipeline) -> None:
    pipe.load_unlearning_adapter(planted(pipe))
    for _ in range(3):
        with pytest.raises(AdapterNameError):
            in_thread(lambda: pipe.fuse_unlearning_adapters("never")).result(SOON)
    in_thread(pipe.fuse_unlearning_adapters).result(SOON)
    assert lock_of(pipe.transformer).change is None


def test_denoisers_are_locked_in_one_order() -> None:
    one, two = nn.Linear(2, 2), nn.Linear(2, 2)
    for order in ((one, two), (two, one)):
        lock_of(order[0])
    counts = []

    def change(order: tuple[nn.Module, ...]) -> None:
        for _ in range(200):
            with changing(order):
                counts.append(1)

    threads = [in_thread(lambda order=order: change(order)) for order in ((one, two), (two, one), (one,), (two,))]
    for thread in threads:
        thread.result(SOON)
    assert len(counts) == 800


def test_a_denoiser_that_is_called_without_a_pipeline_is_not_changed_meanwhile(pipe: WanPipeline) -> None:
    red, blue = planted(pipe), planted(pipe, "blue", seed=1)
    pipe.load_unlearning_adapter(blue)  # a denoiser that never had an adapter has nothing that knows of its calls
    base = output(pipe)
    inside, go_on = threading.Event(), threading.Event()

    def stop(*_: Any) -> None:
        inside.set()
        assert go_on.wait(SOON)

    handle = pipe.transformer.blocks[0].attn1.register_forward_pre_hook(stop)
    call = in_thread(lambda: output(pipe))
    assert inside.wait(SOON)
    change = in_thread(lambda: pipe.load_unlearning_adapter(red))
    assert is_waiting(change)
    go_on.set()
    assert torch.equal(call.result(SOON), base)
    change.result(SOON)
    handle.remove()
    assert not torch.equal(output(pipe), base)


def test_a_call_whose_denoiser_runs_in_other_threads_does_not_wait_for_itself(pipe: WanPipeline) -> None:
    """As a pipeline that gives the halves of its guidance to two threads would do."""
    red, base = planted(pipe), output(pipe)
    call = Stopped(pipe, lambda: results.append(in_thread(lambda: output(pipe)).result(SOON)))
    results: list[Tensor] = []
    change = in_thread(lambda: pipe.load_unlearning_adapter(red))
    assert is_waiting(change)
    call.output()
    change.result(SOON)
    assert torch.equal(results[0], base)


def test_saving_waits_for_a_change(pipe: WanPipeline) -> None:
    pipe.load_unlearning_adapter(planted(pipe))
    with changing([pipe.transformer]):
        saving = in_thread(pipe.transformer.state_dict)
        assert is_waiting(saving)
    assert set(saving.result(SOON)) == set(pipe.transformer.state_dict())


def test_a_peft_model_waits_too(pipe: WanPipeline) -> None:
    pipe.load_unlearning_adapter(planted(pipe))
    edited = output(pipe)
    model = get_peft_model(pipe.transformer, LoraConfig(target_modules=["attn1.to_q"]))
    call = Stopped(pipe)
    pipe.transformer = model
    change = in_thread(lambda: pipe.set_unlearning_adapters("red", 0.0))
    assert is_waiting(change)
    pipe.transformer = model.base_model.model
    call.output()
    change.result(SOON)
    assert not torch.allclose(output(pipe), edited, atol=1e-4)


@pytest.mark.parametrize("compile_it", ["whole", "wrapped", "regional"])
def test_compiled_denoisers_are_not_changed_while_they_run(pipe: WanPipeline, compile_it: str) -> None:
    torch.compiler.reset()
    red = planted(pipe)
    compiled(pipe, compile_it)
    base = run(pipe)
    pipe.load_unlearning_adapter(red)
    edited, other = run(pipe), sharing(pipe)
    call = Stopped(pipe)
    change = in_thread(lambda: pipe.set_unlearning_adapters("red", 0.0))
    assert is_waiting(change)
    later = in_thread(lambda: run(other))
    assert is_waiting(later)
    assert torch.equal(call.output(), edited) and not torch.equal(edited, base)
    change.result(SOON)
    assert torch.equal(later.result(SOON), base) and torch.equal(run(pipe), base)
    torch.compiler.reset()


def test_gradient_checkpointing_takes_no_lock(pipe: WanPipeline) -> None:
    pipe.load_unlearning_adapter(planted(pipe))
    pipe.transformer.train()
    grads = []
    for on in (False, True):
        (pipe.transformer.enable_gradient_checkpointing if on else pipe.transformer.disable_gradient_checkpointing)()
        pipe.transformer.zero_grad()
        maker = torch.Generator().manual_seed(0)
        latents, prompt = (torch.randn(shape, generator=maker) for shape in ((1, 16, 2, 4, 4), (1, 12, 32)))
        loss = pipe.transformer(latents, torch.tensor([500]), prompt, return_dict=False)[0].sum()
        in_thread(loss.backward).result(SOON)
        grads.append(pipe.transformer.blocks[0].attn2.to_k.weight.grad.clone())
    assert torch.equal(*grads) and grads[0].abs().max() > 0


def test_a_build_beside_served_pipelines_breaks_none_of_their_calls_and_is_the_same() -> None:
    served = tiny_wan_pipeline(layers=1)
    apart = sharing(served, transformer=tiny_wan_pipeline(layers=1, seed=3).transformer)
    alone = {id(served): build(served), id(apart): build(apart)}
    expected, hooks = run(served), count_hooks(served)
    for built in (apart, served):
        stop, outputs = threading.Event(), []

        def serve(stop: threading.Event = stop, outputs: list[Tensor] = outputs) -> None:
            while not stop.is_set():
                outputs.append(run(served))

        call = in_thread(serve)
        made = [build(built) for _ in range(4)]
        stop.set()
        call.result(SOON)
        assert outputs and all(torch.equal(each, expected) for each in outputs)
        for adapter in made:
            for site, direction in alone[id(built)].directions.items():
                assert torch.equal(adapter.directions[site].read, direction.read)
                assert torch.equal(adapter.directions[site].write, direction.write)
    assert count_hooks(served) == hooks


def test_builds_of_two_threads_do_not_meet() -> None:
    pipes = [tiny_wan_pipeline(layers=1), tiny_wan_pipeline(layers=1, seed=3)]
    pipes[1] = sharing(pipes[1], text_encoder=pipes[0].text_encoder)
    alone = [build(pipe) for pipe in pipes]
    state = torch.random.get_rng_state()
    with ThreadPoolExecutor(4) as pool:
        made = list(pool.map(build, pipes * 3))
    for number, adapter in enumerate(made):
        for site, direction in alone[number % 2].directions.items():
            assert torch.equal(adapter.directions[site].read, direction.read)
    assert torch.equal(torch.random.get_rng_state(), state)


def test_what_reads_in_several_calls_is_not_changed_between_them(pipe: WanPipeline) -> None:
    red, base = planted(pipe), output(pipe)
    with reading([pipe.transformer]):
        change = in_thread(lambda: pipe.load_unlearning_adapter(red))
        assert is_waiting(change)
        assert torch.equal(output(pipe), base), "and its own calls pass"
    change.result(SOON)
    assert not torch.equal(output(pipe), base)


# A state for the calls of one thread.


def test_a_scope_holds_in_this_thread_alone_whatever_others_do(pipe: WanPipeline) -> None:
    red = planted(pipe)
    base = run(pipe)
    pipe.load_unlearning_adapter(red)
    edited = {}
    for strength in (0.4, 1.2):
        pipe.set_unlearning_adapters("red", strength)
        edited[strength] = run(pipe)
    assert not torch.allclose(edited[0.4], edited[1.2], atol=1e-4)
    pipe.set_unlearning_adapters("red", 0.4)
    before = snapshot(pipe)
    with pipe.unlearning_adapters("red", strength=1.2):
        assert torch.equal(run(pipe), edited[1.2])
        assert torch.equal(in_thread(lambda: run(pipe)).result(SOON), edited[0.4])
        in_thread(pipe.disable_unlearning_adapters).result(SOON)
        assert torch.equal(run(pipe), edited[1.2]) and pipe.get_active_unlearning_adapters() == ["red"]
        assert torch.equal(in_thread(lambda: run(pipe)).result(SOON), base)
        in_thread(pipe.unload_unlearning_adapters).result(SOON)
        assert torch.equal(run(pipe), edited[1.2]), "even if it was unloaded by another thread"
        in_thread(lambda: pipe.load_unlearning_adapter(red, strength=0.4)).result(SOON)
        assert torch.equal(run(pipe), edited[1.2])
    assert torch.equal(run(pipe), edited[0.4])
    assert snapshot(pipe)["transformer:stack"] == before["transformer:stack"]
    pipe.unload_unlearning_adapters()
    assert torch.equal(run(pipe), base)


def test_scopes_of_several_threads_run_beside_each_other(pipe: WanPipeline) -> None:
    pipe.load_unlearning_adapter(planted(pipe, "red"))
    pipe.load_unlearning_adapter(planted(pipe, "blue", seed=1))
    pipe.disable_unlearning_adapters()
    wanted = [(["red"], 0.5), (["blue"], 1.2), (["red", "blue"], 1.0), ([], None)]
    alone = []
    for names, strength in wanted:
        with pipe.unlearning_adapters(names, strength):
            alone.append(run(pipe))
    pipes, start = [sharing(pipe) for _ in wanted], threading.Barrier(len(wanted))

    def request(number: int) -> bool:
        names, strength = wanted[number]
        start.wait()
        with pipes[number].unlearning_adapters(names, strength):
            return all(torch.equal(run(pipes[number]), alone[number]) for _ in range(4))

    with ThreadPoolExecutor(len(wanted)) as pool:
        assert all(pool.map(request, range(len(wanted))))
    for one in range(len(wanted)):
        for two in range(one):
            assert not torch.allclose(alone[one], alone[two], atol=1e-4)


def test_scopes_nest_and_end_with_an_error(pipe: WanPipeline) -> None:
    pipe.load_unlearning_adapter(planted(pipe))
    edited = output(pipe)
    with pytest.raises(KeyError), pipe.unlearning_adapters([]):
        base = output(pipe)
        with pipe.unlearning_adapters("red"):
            assert torch.equal(output(pipe), edited)
        assert torch.equal(output(pipe), base)
        raise KeyError
    assert torch.equal(output(pipe), edited) and not torch.equal(base, edited)


def test_a_scope_on_an_inactive_adapter_leaves_nothing_after_unloading(pipe: WanPipeline) -> None:
    before, base = snapshot(pipe), output(pipe)
    pipe.load_unlearning_adapter(planted(pipe))
    edited = output(pipe)
    pipe.set_unlearning_adapters([])
    for _ in range(2):
        with ua.unlearning_adapters(pipe, "red"):  # the plain function
            assert torch.equal(output(pipe), edited)
        assert torch.equal(bits(output(pipe)), bits(base))
    pipe.unload_unlearning_adapters()
    assert snapshot(pipe) == before
    with pipe.unlearning_adapters([]):
        assert torch.equal(output(pipe), base)
    assert snapshot(pipe) == before


def test_a_task_is_inside_of_the_scope_of_its_maker(pipe: WanPipeline) -> None:
    pipe.load_unlearning_adapter(planted(pipe), strength=0.0)

    async def request(strength: float) -> Tensor:
        with pipe.unlearning_adapters("red", strength):
            return await asyncio.to_thread(output, pipe)

    async def serve() -> list[Tensor]:
        return await asyncio.gather(*(request(strength) for strength in (0.0, 0.6, 1.2)))

    outputs = asyncio.run(serve())
    for strength, found in zip((0.0, 0.6, 1.2), outputs, strict=True):
        pipe.set_unlearning_adapters("red", strength)
        assert torch.equal(output(pipe), found)
    assert not torch.allclose(outputs[0], outputs[2], atol=1e-4)


def test_a_scope_beside_loras_edits_what_they_read(pipe: WanPipeline) -> None:
    red = planted(pipe)
    pipe.load_unlearning_adapter(red, strength=0.4)
    with pipe.unlearning_adapters("red", 1.2):
        pipe.load_lora_weights(lora_that_reads(red, pipe), adapter_name="style")
        inside = output(pipe)
    pipe.set_unlearning_adapters("red", 1.2)
    assert torch.equal(output(pipe), inside)


def test_what_a_scope_cannot_do_is_refused_by_name(pipe: WanPipeline) -> None:
    red, blue = planted(pipe, "red"), planted(pipe, "blue", seed=1)
    for adapter in (red, blue):
        pipe.load_unlearning_adapter(adapter)
    for names, strength, error, text in (
        ("rad", None, AdapterNameError, "Did you mean 'red'"),
        ("red", 5.0, ConfigError, "from 0 .off. to 4"),
        (["red", "blue"], [1.0], ConfigError, "each of 2 adapters, but got 1"),
    ):
        with pytest.raises(error, match=text), pipe.unlearning_adapters(names, strength):
            raise AssertionError
    with pipe.unlearning_adapters("red"):
        before = snapshot(pipe)
        for fuse in (pipe.fuse_unlearning_adapters, lambda: in_thread(pipe.fuse_unlearning_adapters).result(SOON)):
            with pytest.raises(FuseError, match="are open, and rely on its weights .* outside of all of them"):
                fuse()
        assert snapshot(pipe) == before
    pipe.fuse_unlearning_adapters("red")
    with pytest.raises(FuseError, match="'red' is fused at strength 1 and cannot be set to 0. Call unfuse_"):
        with pipe.unlearning_adapters("blue"):
            raise AssertionError
    with pipe.unlearning_adapters(["red", "blue"], [1.0, 0.3]):
        inside = output(pipe)
    pipe.set_unlearning_adapters(["red", "blue"], [1.0, 0.3])
    assert torch.equal(output(pipe), inside)


@pytest.mark.parametrize("compile_it", ["whole", "wrapped", "regional"])
def test_a_scope_on_a_compiled_denoiser_is_refused_by_name(pipe: WanPipeline, compile_it: str) -> None:
    pipe.load_unlearning_adapter(planted(pipe))
    compiled(pipe, compile_it)
    with pytest.raises(DenoiserError, match="transformer of .* is compiled, so that all threads share"):
        with pipe.unlearning_adapters([]):
            raise AssertionError
