"""A made-up object of vLLM's has nothing that the installed vLLM's own has not."""

import pytest


@pytest.fixture(scope="module")
def fakes():
    import fakes

    return fakes


def test_what_the_real_class_has_can_be_made_up(fakes):
    from vllm.config import DeviceConfig

    assert fakes.stand_in(DeviceConfig, device_type="tpu").device_type == "tpu"
    assert fakes.device_config("cuda").device_type == "cuda"


def test_what_the_real_class_has_lost_cannot(fakes):
    from vllm.config import DeviceConfig

    with pytest.raises(AttributeError, match="DeviceConfig has no devise_type in this vLLM"):
        fakes.stand_in(DeviceConfig, devise_type="cuda")
