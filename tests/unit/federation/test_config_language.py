import pytest
from pydantic import ValidationError

from llm_qfl.federation.config_language import PRESETS, LanguageConfig


def test_presets_name_real_keys() -> None:
    for preset in PRESETS:
        values = LanguageConfig(preset=preset).effective()
        assert {name: getattr(values, name) for name in PRESETS[preset]} == PRESETS[preset]


def test_a_key_against_its_preset_is_refused_not_overruled() -> None:
    with pytest.raises(ValidationError, match=r"language\.eps: the preset 'released' fixes it to 0\.0, got 0\.5"):
        LanguageConfig(preset="released", eps=0.5)
    assert LanguageConfig(preset="released", eps=0.0).effective().eps == 0.0
    assert LanguageConfig(eps=0.5).effective().eps == 0.5


@pytest.mark.parametrize("model", ["tiny", "tiny-8", "tiny-gpt2-3", "none", "smollm2-135m", "a/b", "/x/y", "./m"])
def test_models(model: str) -> None:
    assert LanguageConfig(model=model).enabled == (model != "none")


@pytest.mark.parametrize("model", ["tiny-9", "gpt2", "", "a/b/c"])
def test_models_that_are_none(model: str) -> None:
    with pytest.raises(ValidationError, match=r"language\.model: expected smollm2-135m"):
        LanguageConfig(model=model)


@pytest.mark.parametrize(
    ("method", "split", "federated", "one_site", "realigns"),
    [
        ("fedbiot", (30, 4, 0.2, 0), True, False, True),
        ("fedot", (30, 4, 0.2, 0), True, False, False),
        ("offsite", (30, 4, 0.2, 0), True, True, False),
        ("fedlora-tail", (30, 4, 0.0, 0), True, False, False),
        ("fedlora-all", (30, 30, 0.0, 0), True, False, False),
        ("local", (30, 4, 0.2, 0), False, False, False),
    ],
)
def test_methods_are_values(method, split, federated, one_site, realigns) -> None:
    config = LanguageConfig(method=method, align_every=1)
    assert config.split_arguments(30) == split
    assert (config.federated, config.one_site, config.realigns) == (federated, one_site, realigns)


def test_ends() -> None:
    assert LanguageConfig(placement="ends").split_arguments(30) == (30, 4, 0.2, 2)
    with pytest.raises(ValidationError, match="needs at least 2"):
        LanguageConfig(placement="ends", adapter_layers=1)
