import inspect
from dataclasses import replace

import pytest
import torch
from forge import OTHER, SITE, planted_adapter, planted_direction, small_weights

from unlearning_adapters.adapter.adapter import UnlearningAdapter, load_adapter, save_adapter
from unlearning_adapters.adapter.direction import AdapterInfo, Direction
from unlearning_adapters.adapter.file import FILE_NAME
from unlearning_adapters.errors import AdapterFileError, AdapterNotFoundError, ConfigError


def test_a_direction_knows_its_shape():
    direction = planted_direction(3, 12, oblique=True)
    assert (direction.rank, direction.in_features, direction.orthogonal) == (3, 12, False)
    assert torch.allclose(direction.read @ direction.write.T, torch.eye(3), atol=1e-6)
    assert planted_direction(3, 12, oblique=False).orthogonal


@pytest.mark.parametrize("shapes", [((1, 4), (1, 5)), ((1, 4), (2, 4)), ((4,), (4,))])
def test_reads_and_writes_have_one_shape(shapes):
    with pytest.raises(ConfigError, match=r"Expected `read` and `write` of one shape \(rank, in_features\), but got"):
        Direction(torch.zeros(shapes[0]), torch.zeros(shapes[1]))


def test_an_adapter_lists_its_sites_and_components():
    weights = small_weights("transformer_2.b", SITE, "transformer_2.a")
    adapter = planted_adapter(weights, rank=2)
    assert adapter.sites == ("transformer_2.b", SITE, "transformer_2.a")
    assert adapter.components == ("transformer_2", "transformer")
    assert (adapter.rank, adapter.strength) == (2, 1.25)
    assert repr(adapter) == "UnlearningAdapter(concept='red', method='ridge', strength=1.25, rank=2, sites=3)"


def test_an_adapter_needs_a_site():
    with pytest.raises(ConfigError, match="needs a direction for at least one site"):
        UnlearningAdapter(AdapterInfo("red", "ridge"), {})


def test_an_adapter_says_of_which_kind_its_directions_are():
    plain, added = Direction(torch.eye(4)[:1], torch.eye(4)[:1]), Direction(torch.ones(1, 4), torch.ones(1, 4), True)
    assert UnlearningAdapter(AdapterInfo("red", "uce"), {SITE: added, OTHER: added}).edit == "additive"
    assert UnlearningAdapter(AdapterInfo("red", "ridge"), {SITE: plain}).edit == "projection"
    both = UnlearningAdapter(AdapterInfo("red", "ridge"), {SITE: plain, OTHER: added})
    assert both.edit == "mixed" and both.additive == (OTHER,) and both.info.format_version == 3


def test_an_adapter_of_both_kinds_is_read_as_it_was_written(tmp_path):
    weights = small_weights()
    adapter = planted_adapter(weights)
    loose = Direction(torch.rand(1, 8), torch.rand(1, 8), additive=True, gain=0.5)
    mixed = replace(adapter, directions={**adapter.directions, OTHER: loose})
    loaded = load_adapter(save_adapter(mixed, tmp_path))
    assert loaded.edit == "mixed" and loaded.info == mixed.info and loaded.gains == {OTHER: 0.5}
    for site, direction in mixed.directions.items():
        assert loaded.directions[site].additive == direction.additive
        assert torch.equal(loaded.directions[site].read, direction.read)
        assert torch.equal(loaded.directions[site].write, direction.write)
    with pytest.raises(AdapterFileError, match="holds no direction"):
        save_adapter(replace(mixed, directions={**mixed.directions, OTHER: replace(loose, additive=False)}), tmp_path)


def test_a_shrinkage_is_read_as_it_was_written_with_gains_and_of_all_kinds(tmp_path):
    adapter = planted_adapter(small_weights())
    assert adapter.shrinkage == 0 and adapter.info.format_version == 1
    loose = Direction(torch.rand(1, 8), torch.rand(1, 8), additive=True, gain=0.5)
    for directions in (adapter.directions, {**adapter.directions, OTHER: loose}):
        shrunk = replace(adapter, directions={site: replace(one, shrinkage=0.25) for site, one in directions.items()})
        loaded = load_adapter(save_adapter(shrunk, tmp_path))
        assert loaded.shrinkage == 0.25 and loaded.info == shrunk.info and loaded.info.format_version == 4
        assert loaded.edit == shrunk.edit and loaded.gains == shrunk.gains
    with pytest.raises(ConfigError, match=r"Expected one shrinkage for all sites, but got 0.0, 0.25\."):
        replace(shrunk, directions={**shrunk.directions, OTHER: loose})


def test_the_stock_factor_follows_the_strength():
    weights = small_weights()
    adapter = planted_adapter(weights, strength=0.5)
    stronger = adapter.with_strength(1.5)
    assert stronger.strength == 1.5 and adapter.strength == 0.5
    for site in (SITE, OTHER):
        assert torch.allclose(stronger.lora_B[site], planted_adapter(weights, strength=1.5).lora_B[site], atol=1e-6)
        assert not torch.allclose(stronger.lora_B[site], adapter.lora_B[site], atol=1e-2)
    assert not adapter.with_strength(0).lora_B[SITE].any()
    with pytest.raises(ConfigError, match="Expected the strength to be a number from 0"):
        adapter.with_strength(5)


def test_the_record_survives_a_dictionary():
    info = planted_adapter(small_weights()).info
    assert AdapterInfo.from_dict(info.to_dict()) == info
    with pytest.raises(ConfigError, match="Unknown key 'strenght' in AdapterInfo. Did you mean 'strength'"):
        AdapterInfo.from_dict({"concept": "red", "method": "ridge", "strenght": 1.0})


def test_save_pretrained_and_from_pretrained_are_save_and_load(tmp_path):
    adapter = planted_adapter(small_weights())
    path = adapter.save_pretrained(tmp_path / "a")
    assert path == tmp_path / "a" / FILE_NAME
    assert path.read_bytes() == save_adapter(adapter, tmp_path / "b").read_bytes()
    loaded = UnlearningAdapter.from_pretrained(tmp_path, subfolder="a")
    assert loaded.info == adapter.info
    assert torch.equal(loaded.directions[SITE].write, adapter.directions[SITE].write)
    with pytest.raises(AdapterNotFoundError, match="'org/no-red'"):
        UnlearningAdapter.from_pretrained("org/no-red", local_files_only=True, cache_dir=tmp_path)
    signature = inspect.signature(UnlearningAdapter.from_pretrained).parameters
    assert list(signature) == list(inspect.signature(load_adapter).parameters)
