import pytest

from unlearning_adapters.errors import AdapterNameError
from unlearning_adapters.runtime.file_verbs import check_new_name, default_name
from unlearning_adapters.runtime.pipeline_editors import check_loaded
from unlearning_adapters.runtime.verbs import as_names


def test_one_name_or_several():
    assert as_names("red") == ["red"] and as_names(("red", "blue")) == ["red", "blue"] and as_names([]) == []
    with pytest.raises(AdapterNameError, match="each adapter once, but got 'red', 'red'"):
        as_names(["red", "red"])


@pytest.mark.parametrize("name", ["no-nudity", "org/no-nudity", "a b", "x" * 100])
def test_names_that_peft_takes_are_taken(name):
    check_new_name(name, ["other"])


@pytest.mark.parametrize("name", ["", "  ", "a.b", "x" * 101, None, 3])
def test_other_names_are_not(name):
    with pytest.raises(AdapterNameError, match="1 to 100 characters without '.', but got") as caught:
        check_new_name(name, [])
    assert len(str(caught.value)) < 250


def test_a_taken_name_is_refused_with_the_cure():
    with pytest.raises(AdapterNameError, match="'red' is loaded already.* Pass another `adapter_name`"):
        check_new_name("red", ["red"])


def test_an_unknown_name_gets_a_hint():
    check_loaded(["red"], ["red", "blue"])
    with pytest.raises(AdapterNameError, match="no unlearning adapter 'rd' on this pipeline. Did you mean 'red'"):
        check_loaded(["rd"], ["red", "blue"])
    with pytest.raises(AdapterNameError, match="Loaded are: none"):
        check_loaded(["red"], [])


def test_default_names_are_valid_and_unique():
    loaded: list[str] = []
    for concept in ("red", "red", "red", "v1.5 style", "", "y" * 300, "y" * 300):
        name = default_name(concept, loaded)
        check_new_name(name, loaded)
        loaded.append(name)
    assert loaded[:5] == ["red", "red_2", "red_3", "v1-5 style", "adapter"]
