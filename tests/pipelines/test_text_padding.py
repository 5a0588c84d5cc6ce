"""Text encoders without padding: the same states but for rounding, NaN where padding was, and nothing left behind."""

from contextlib import nullcontext

import pytest
import tiny
import tiny_encoders
import torch
from cases.t5 import make_mochi
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import KEY, PROMPTS
from traces import count_hooks

from unlearning_adapters.building.build import build_adapter
from unlearning_adapters.concepts.concept import Concept, Pair
from unlearning_adapters.errors import DenoiserError, PipelineError
from unlearning_adapters.pipelines import activations
from unlearning_adapters.pipelines.activations import record
from unlearning_adapters.pipelines.sites import find_sites
from unlearning_adapters.pipelines.text_padding import padding_once, without_padding

LENGTH = 12
ENCODERS = {
    "T5": lambda: tiny_encoders.t5_encoder(tiny_encoders.word_tokenizer()),
    "UMT5": lambda: tiny.tiny_text_encoder(50),
    "Llama": tiny_encoders.llama_encoder,
    "Qwen": tiny_encoders.qwen_encoder,
    "CLIP": lambda: tiny_encoders.clip_encoder(32),
}


class Holder:
    """A pipeline as far as it matters here."""

    def __init__(self, **components):
        self.components = components


@pytest.fixture(params=ENCODERS)
def encoder(request):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return ENCODERS[request.param]().eval()


def batch(lengths, left=False):
    tokens = torch.randint(5, 20, (len(lengths), LENGTH), generator=torch.Generator().manual_seed(1))
    mask = torch.arange(LENGTH) < torch.tensor(lengths)[:, None]
    mask = (mask.flip(1) if left else mask).long()
    return tokens * mask, mask


@torch.no_grad()
def states(encoder, *args, cut, **kwargs):
    """Last hidden states, and how many tokens the layers did not read."""
    if not cut:
        return encoder(*args, **kwargs)[0], []
    with without_padding(Holder(text_encoder=encoder, vae=None, tokenizer="a tokenizer")) as saved:
        return encoder(*args, **kwargs)[0], saved


@settings(max_examples=20, deadline=None)
@given(lengths=st.lists(st.integers(1, LENGTH), min_size=1, max_size=4), named=st.booleans())
def test_what_is_no_padding_is_read_as_ever(lengths, named):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        encoder = ENCODERS["UMT5"]()
    tokens, mask = batch(lengths)
    args, kwargs = ((), {"input_ids": tokens, "attention_mask": mask}) if named else ((tokens, mask), {})
    whole, _ = states(encoder, *args, cut=False, **kwargs)
    short, saved = states(encoder, *args, cut=True, **kwargs)
    longest = max(lengths)
    assert saved == ([LENGTH - longest] if longest < LENGTH else [])
    assert short.shape == whole.shape and bool(short[:, longest:].isnan().all())
    seen = mask.bool()
    torch.testing.assert_close(short[seen], whole[seen], rtol=1e-4, atol=1e-5)


def test_every_kind_of_encoder(encoder):
    tokens, mask = batch([3, 7, 5])
    whole, _ = states(encoder, tokens, mask, cut=False)
    short, saved = states(encoder, tokens, mask, cut=True)
    assert saved == [LENGTH - 7] and bool(short[:, 7:].isnan().all())
    torch.testing.assert_close(short[mask.bool()], whole[mask.bool()], rtol=1e-4, atol=1e-5)
    assert not encoder._forward_hooks and not encoder._forward_pre_hooks


def test_all_hidden_states_are_padded_again_also_in_a_tuple():
    encoder = tiny_encoders.llama_encoder().eval()
    tokens, mask = batch([4, 6])
    with torch.no_grad(), without_padding(Holder(text_encoder_2=encoder)):
        named = encoder(tokens, attention_mask=mask, output_hidden_states=True, use_cache=False)
        plain = encoder(tokens, attention_mask=mask, output_hidden_states=True, use_cache=False, return_dict=False)
    for output in (named.hidden_states, plain[1]):
        assert len(output) == 4
        for layer in output:
            assert layer.shape[1] == LENGTH and bool(layer[:, 6:].isnan().all() and layer[:, :4].isfinite().all())


@pytest.mark.parametrize(
    ("args", "kwargs"),
    [
        ((batch([3, 7])[0],), {}),
        (batch([3, LENGTH]), {}),
        (batch([3, 7], left=True), {}),
        (batch([3, 7]), {"position_ids": torch.arange(LENGTH).expand(2, -1)}),
        ((), {"inputs_embeds": torch.ones(2, LENGTH, tiny_encoders.WIDTH), "attention_mask": batch([3, 7])[1]}),
    ],
    ids=["no mask", "none is shorter", "padding in front", "another tensor of that length", "no tokens"],
)
def test_calls_that_cannot_be_cut_are_left_alone(args, kwargs):
    encoder = tiny_encoders.llama_encoder().eval()
    whole, _ = states(encoder, *args, cut=False, **kwargs)
    same, saved = states(encoder, *args, cut=True, **kwargs)
    assert saved == [] and torch.equal(same, whole)


def test_a_call_without_any_token_is_left_alone():
    encoder = tiny.tiny_text_encoder(50)
    tokens, mask = batch([0, 0])
    whole, _ = states(encoder, tokens, mask, cut=False)
    same, saved = states(encoder, tokens, mask, cut=True)
    assert saved == [] and torch.equal(same.nan_to_num(), whole.nan_to_num())


def test_recording_reads_no_padding_and_records_the_same():
    pipe = tiny.tiny_wan_pipeline()
    read = []
    hook = pipe.text_encoder.encoder.embed_tokens.register_forward_hook(lambda *call: read.append(call[1][0].shape))
    sites = find_sites(pipe)
    short, whole = (
        record(pipe, PROMPTS, sites, padded=padded, batch_size=2, progress=False) for padded in (False, True)
    )
    hook.remove()
    lengths = sorted(len(pipe.tokenizer(prompt).input_ids) for prompt in PROMPTS)
    assert [tuple(shape) for shape in read[:3]] == [(2, lengths[1]), (2, lengths[3]), (1, lengths[4])]
    assert all(shape[1] == 512 for shape in read[3:])
    assert not short.padded and whole.padded
    for one, other in zip(short.of(KEY), whole.of(KEY), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_a_pipeline_that_lets_padding_through_is_recorded_with_it():
    pipe = make_mochi()
    sites = find_sites(pipe)
    call = {"height": 32, "width": 32, "num_frames": 7, "max_sequence_length": 16}
    found, whole = (
        record(pipe, PROMPTS[3:], sites, padded=padded, call_kwargs=call, progress=False) for padded in (False, True)
    )
    assert found.padded and found.groups == whole.groups
    for one, other in zip(found.rows, whole.rows, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))
    assert count_hooks(pipe) == 0


def test_an_encoder_that_counts_on_padding_gets_it():
    pipe = tiny.tiny_wan_pipeline()
    forward = pipe.text_encoder.forward

    def strict(input_ids, attention_mask):
        if input_ids.shape[1] < 512:
            raise ValueError("512 tokens or none")
        return forward(input_ids, attention_mask)

    expected = record(pipe, PROMPTS[:2], find_sites(pipe), padded=True, progress=False)
    pipe.text_encoder.forward = strict
    found = record(pipe, PROMPTS[:2], find_sites(pipe), progress=False)
    assert found.padded and torch.equal(found.of(KEY)[1], expected.of(KEY)[1])
    pipe.text_encoder.forward = lambda input_ids, attention_mask: 1 / 0
    with pytest.raises(PipelineError, match="failed with ZeroDivisionError: division by zero"):
        record(pipe, PROMPTS[:2], find_sites(pipe), progress=False)


def test_numbers_that_are_nan_without_us_are_named():
    pipe = tiny.tiny_wan_pipeline()
    with torch.no_grad():
        pipe.transformer.condition_embedder.text_embedder.linear_1.weight.fill_(torch.nan)
    with pytest.raises(DenoiserError, match=r"the weight transformer\.condition_embedder\.\S+\.weight holds NaN"):
        record(pipe, PROMPTS[:1], find_sites(pipe), progress=False)


def test_a_build_is_that_of_padded_prompts(monkeypatch):
    pipe = tiny.tiny_wan_pipeline()
    pairs = tuple(Pair(f"a red {word}", f"a blue {word}") for word in ("car", "cat", "man", "street", "dog"))
    concept = Concept("red", pairs=pairs, neutral=("two dogs run", "a very dark night on a street", "a car"))
    adapter = build_adapter(pipe, concept, progress=False)
    monkeypatch.setattr(activations, "without_padding", lambda _pipe: nullcontext([]))
    padded = build_adapter(pipe, concept, progress=False)
    assert adapter.strength == pytest.approx(padded.strength, rel=1e-3)
    for site in padded.sites:
        found, whole = adapter.directions[site], padded.directions[site]
        torch.testing.assert_close(found.read, whole.read, rtol=1e-2, atol=1e-3)


class Reads(torch.nn.Module):
    """Two layers, and what each of them was fed."""

    def __init__(self, bias=True):
        super().__init__()
        self.first, self.site = torch.nn.Linear(6, 8, bias=bias), torch.nn.Linear(8, 5)
        self.widths = []
        self.first.register_forward_pre_hook(lambda _m, args: self.widths.append(args[0].shape))

    def forward(self, x):
        return self.site(torch.nn.functional.gelu(self.first(x)))


def test_a_layer_maps_the_padding_of_a_batch_once_and_gives_the_same():
    network = Reads()
    x = torch.zeros(3, 40, 6)
    for prompt, words in enumerate((4, 9, 2)):
        x[prompt, :words] = torch.randn(words, 6, generator=torch.Generator().manual_seed(prompt))
    computed = []
    with torch.no_grad():
        whole = network.first(x)
        seen = []
        handles = [network.site.register_forward_pre_hook(lambda _m, args: seen.append(args[0].clone()))]
        with padding_once([network]):
            handle = network.first.register_forward_hook(lambda _m, args, _out: computed.append(args[0]))
            made = network(x)
            for each in (handle, *handles):
                each.remove()
    assert [each.shape[1] for each in computed] == [10] and seen[0].shape == (3, 40, 8)
    assert computed[0].is_contiguous()  # or torch makes a copy of the weight for each prompt
    torch.testing.assert_close(seen[0], torch.nn.functional.gelu(whole), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(made, network.site(seen[0]), rtol=1e-5, atol=1e-6)
    assert not network.first._forward_hooks and len(network.first._forward_pre_hooks) == 1  # its own


@pytest.mark.parametrize(
    "change",
    [
        lambda x: x[:, :12],  # few rows
        lambda x: x[0],  # no batch
        lambda x: x.index_fill(1, torch.tensor([39]), 1.0),  # the last row is another one
        lambda x: x.index_fill(1, torch.tensor([35]), 1.0),  # few of them are the same
        lambda x: x.masked_fill(torch.arange(40)[:, None] > 9, float("nan")),  # what was cut off shows
    ],
    ids=["short", "flat", "another end", "few", "nan"],
)
def test_what_has_no_such_padding_is_computed_whole(change):
    network = Reads()
    x = torch.zeros(2, 40, 6)
    x[:, :9] = torch.randn(2, 9, 6, generator=torch.Generator().manual_seed(0))
    x, computed = change(x), []
    with torch.no_grad():
        whole = network(x)
        with padding_once([network]):
            network.first.register_forward_hook(lambda _m, args, _out: computed.append(args[0].shape))
            assert torch.equal(network(x), whole) or bool(whole.isnan().any())
    assert computed == [x.shape]


def test_a_call_that_failed_leaves_nothing_for_the_next():
    network = Reads()
    x = torch.zeros(2, 40, 6)
    with torch.no_grad(), padding_once([network]):
        handle = network.first.register_forward_pre_hook(lambda _m, _args: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            network(x)
        handle.remove()
        y = torch.randn(2, 40, 6, generator=torch.Generator().manual_seed(0))
        inside = network(y)
        assert torch.equal(inside, network(y))
    with torch.no_grad():
        assert torch.equal(inside, network(y))
