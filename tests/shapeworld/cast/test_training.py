"""The training script of CastWorld: its data, its checkpoints on disk, its gate, and the loader of what it writes."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from unlearning_adapters import load_castworld
from unlearning_adapters.errors import DenoiserError
from unlearning_adapters.shapeworld.cast.captions import describe
from unlearning_adapters.shapeworld.cast.judge import CastReading
from unlearning_adapters.shapeworld.cast.prompts import draw_cast_prompts
from unlearning_adapters.shapeworld.cast.roster import look_alikes, roster
from unlearning_adapters.shapeworld.cast.scenes import render, sample_scene, without_foreground
from unlearning_adapters.shapeworld.models.generate import CAST_GENERATION, generation_of
from unlearning_adapters.shapeworld.models.load import load_shapeworld
from unlearning_adapters.shapeworld.training.cast import (
    CastSettings,
    asked_settings,
    cast_scenes,
    export,
    foreground_shares,
    place_weights,
    start_model,
    trained_pipeline,
)
from unlearning_adapters.shapeworld.training.cast_checkpoint import read_checkpoint, start_at
from unlearning_adapters.shapeworld.training.cast_gate import shares_right
from unlearning_adapters.shapeworld.training.cast_vae import CastVaeSettings, cast_batch, differs, train_cast_vae
from unlearning_adapters.shapeworld.training.language import TokenConditioned
from unlearning_adapters.shapeworld.training.run import TrainingRun
from unlearning_adapters.shapeworld.training.wan_denoiser import Training


def test_each_character_has_as_many_training_scenes_as_any_other():
    scenes = cast_scenes(CastSettings(scenes=384))
    assert np.bincount([scene.character for scene in scenes]).tolist() == [3] * 128
    assert scenes == cast_scenes(CastSettings(scenes=384))


def test_a_batch_of_the_vae_weighs_what_is_drawn_and_what_tells_look_alikes_apart():
    settings = CastVaeSettings(frame_steps=1)
    frames, weight = cast_batch(settings, 0)
    clips, _ = cast_batch(settings, 1)
    assert frames.shape == (16, 3, 1, 64, 64)
    assert clips.shape == (4, 3, 9, 64, 64)
    # The setting, what is drawn over it, what only look-alikes draw, and what is drawn otherwise than by them.
    assert set(weight.unique().tolist()) == {1.0, 6.0, 13.0, 18.0}
    assert 0.05 < float((weight > 1).float().mean()) < 0.4
    assert 0.005 < float((weight > 10).float().mean()) < 0.1
    assert torch.equal(frames, cast_batch(settings, 0)[0])


def test_the_share_of_foreground_in_each_latent_is_that_of_the_pixels_it_stands_for():
    scenes = [sample_scene(np.random.default_rng(seed)) for seed in range(3)]
    shares = foreground_shares(scenes)
    assert shares.shape == (3, 1, 3, 4, 4)
    over = differs(render(scenes[1]), without_foreground(scenes[1]))
    assert float(shares[1, 0, 0, 2, 1]) == pytest.approx(over[0, 32:48, 16:32].mean(), abs=1e-6)
    assert float(shares[1, 0, 2, 2, 1]) == pytest.approx(over[5:9, 32:48, 16:32].mean(), abs=1e-6)


def test_the_weight_of_a_place_is_the_same_for_each_clip_and_largest_where_most_is_drawn():
    scenes = [sample_scene(np.random.default_rng(seed), things=("balloon",)[: seed % 2]) for seed in range(16)]
    weights, shares = place_weights(scenes, 3.0), foreground_shares(scenes).mean(0)
    assert weights.shape == (1, 3, 4, 4)
    assert float(weights.max()) == pytest.approx(4.0) and weights.argmax() == shares.argmax()
    assert float(weights[0, 0, 0, 3]) == pytest.approx(
        1 + 3 * float(shares[0, 0, 0, 3] / shares.max())
    )  # the balloon's


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of two steps of the VAE and two of the denoiser, on noise."""
    run = TrainingRun(tmp_path_factory.mktemp("cast"))
    train_cast_vae(run, CastVaeSettings(frame_steps=2, frame_batch=1, clip_steps=0))
    run.save("statistics", {"mean": torch.zeros(24), "std": torch.ones(24)})
    training = Training(run, CastSettings(steps=2), start())
    rng = torch.Generator().manual_seed(0)
    hidden, latents = torch.randn(2, 4, 384, generator=rng), torch.randn(2, 24, 3, 4, 4, generator=rng)
    inputs = (hidden, torch.ones(2, 4), torch.tensor([32, 32]), latents, torch.tensor([500.0, 300.0]))
    training.train("cast", lambda step: training.model(*inputs).square().mean(), save_every=2)
    run.log("cast", step=2)
    return run


def start():
    model = start_model()
    assert isinstance(model, TokenConditioned)
    return model


def test_a_run_goes_on_from_what_it_exports(run, tmp_path):
    export(run, tmp_path / "model", CastSettings())
    files = {path.relative_to(tmp_path / "model").as_posix() for path in (tmp_path / "model").rglob("*.safetensors")}
    assert files == {
        "vae/diffusion_pytorch_model.safetensors", "transformer/diffusion_pytorch_model.safetensors",
        "checkpoint/weights.safetensors", "checkpoint/optimizers.safetensors",
    }  # fmt: skip
    assert max(path.stat().st_size for path in (tmp_path / "model").rglob("*")) < 25_000_000
    assert [json.loads(line)["stage"] for line in (tmp_path / "model/training_log.jsonl").open()] == ["cast"]

    other = TrainingRun(tmp_path / "run")
    read_checkpoint(tmp_path / "model", other, start(), CastSettings())
    old, new = Training(run, CastSettings(), start()), Training(other, CastSettings(), start())
    assert new.step == old.step == 2
    for name, value in old.model.state_dict().items():
        assert torch.allclose(value, new.model.state_dict()[name], rtol=0.01, atol=1e-6), name
    for before, after in zip(old.optimizers, new.optimizers, strict=True):
        states = [optimizer.state_dict()["state"] for optimizer in (before, after)]
        assert set(states[0]) == set(states[1]) != set()
        for index, values in states[0].items():
            assert all(torch.allclose(values[key], states[1][index][key], rtol=0.01, atol=1e-6) for key in values)
    train_cast_vae(other, CastVaeSettings(frame_steps=1, frame_batch=1, clip_steps=0))
    assert other.load("vae")["step"] == 1
    with pytest.raises(SystemExit, match="holds a run already"):
        read_checkpoint(tmp_path / "model", other, start(), CastSettings())


def test_a_run_starts_from_the_weights_of_an_exported_model_with_a_schedule_of_its_own(run, tmp_path):
    export(run, tmp_path / "model", CastSettings(steps=2))
    assert not (tmp_path / "model/checkpoint").exists()  # its training is over
    settings = asked_settings(steps=7, rate=3e-4, seed=15)
    assert (settings.steps, settings.seed, settings.matrix_rate, settings.other_rate) == (
        7,
        15,
        3e-4,
        pytest.approx(2e-4),
    )
    other = TrainingRun(tmp_path / "run")
    start_at(tmp_path / "model", other, start(), settings)
    training, shipped = Training(other, settings, start()), trained_pipeline(run).transformer.state_dict()
    assert training.step == 0 and other.load("vae") is not None
    assert all(torch.allclose(v, shipped[n], atol=2e-3) for n, v in training.model.transformer.state_dict().items())
    with pytest.raises(SystemExit, match="leave --start out"):
        start_at(tmp_path / "model", other, start(), settings)
    new = TrainingRun(tmp_path / "new")
    with pytest.raises(SystemExit, match="--start needs an exported model, but there is no .*config.json"):
        start_at(tmp_path / "nowhere", new, start(), settings)
    with pytest.raises(SystemExit, match=r"no .*weights.safetensors\. .* train it further with --start"):
        read_checkpoint(tmp_path / "model", new, start(), settings)
    assert not list(new.folder.iterdir())


def test_zero_is_a_seed():
    assert asked_settings(steps=None, rate=None, seed=0) == replace(CastSettings(), seed=0)


def test_a_run_keeps_to_its_clips_and_captions(tmp_path):
    run = TrainingRun(tmp_path)
    for _ in range(2):
        run.check_data({"seed": 12})
    with pytest.raises(SystemExit, match="holds clips and captions of {'seed': 12}, not {'seed': 13}; choose another"):
        run.check_data({"seed": 13})


def test_the_exported_model_loads_as_the_trained_one(run, tmp_path):
    export(run, tmp_path, CastSettings())
    for part in ("transformer", "vae"):
        assert json.loads((tmp_path / part / "config.json").read_text()).get("_name_or_path", "") == ""
    pipe, trained = load_castworld(model=tmp_path), trained_pipeline(run)
    for part in ("transformer", "vae"):
        states = [getattr(each, part).state_dict() for each in (pipe, trained)]
        assert all(torch.allclose(value, states[1][name], atol=2e-3) for name, value in states[0].items())
    assert generation_of(pipe) == CAST_GENERATION
    rng = np.random.default_rng(2)
    captions = [describe(rng, sample_scene(rng)) for _ in range(2000)]
    assert 32 < max(map(len, pipe.tokenizer(captions).input_ids)) <= CAST_GENERATION["max_sequence_length"]
    assert not torch.equal(pipe.vae.encoder.conv_in.weight, load_shapeworld().vae.encoder.conv_in.weight)


def test_a_run_ends_when_its_minutes_have_passed(tmp_path):
    run = TrainingRun(tmp_path, minutes=0)
    train_cast_vae(run, CastVaeSettings(frame_steps=5, frame_batch=1, clip_steps=0))
    assert run.load("vae")["step"] == 1


def test_missing_weights_are_named_in_one_line(tmp_path):
    with pytest.raises(DenoiserError, match="CastWorld's weights are not in") as error:
        load_castworld(model=tmp_path)
    assert "\n" not in str(error.value)


def test_the_gate_counts_what_is_right_and_what_a_look_alike_took():
    prompts = draw_cast_prompts(4, 1)
    readings = [CastReading(True, "", {**sample_scene(np.random.default_rng(0)).factors, **p.factors}) for p in prompts]
    asked = [character.name for character in roster()].index(prompts[0].factors["character"])
    readings[0].factors["character"] = roster()[look_alikes(asked)[0]].name
    readings[1] = CastReading(False, "noise")
    rows = shares_right(prompts, readings)
    assert (rows["n"], rows["valid"], rows["character"], rows["motion"]) == (4, 0.75, 0.5, 0.75)
    assert rows["look-alike instead"] == 0.25


def test_a_run_that_has_no_log_is_published_without_one(tmp_path):
    TrainingRun(tmp_path / "run").publish(tmp_path, {"steps": 1})
    assert json.loads((tmp_path / "training.json").read_text()) == {"steps": 1}
    assert not (tmp_path / "training_log.jsonl").exists()


def test_a_run_without_checkpoint_is_named(tmp_path):
    with pytest.raises(SystemExit, match="run the stage 'train' first"):
        trained_pipeline(TrainingRun(tmp_path))


def test_clips_of_the_world_have_the_form_of_shapeworld():
    assert render(sample_scene(np.random.default_rng(0))).shape == (9, 64, 64, 3)
