"""Devices by their memory."""

import pytest

from tunesmith.errors import BadInput
from tunesmith.planning.devices import COMMON, Device, device_of, devices_of


@pytest.mark.parametrize(
    ("text", "device"),
    [
        ("24", Device(24)),
        ("24GB", Device(24)),
        ("2x80", Device(80, 2)),
        ("4 x 24 GB", Device(24, 4)),
        ("8×141", Device(141, 8)),
        ("1.5", Device(1.5)),
    ],
)
def test_a_device_is_named_by_its_gigabytes_and_how_many_there_are(text, device):
    assert device_of(text) == device


def test_a_list_names_several_and_none_the_common_ones():
    assert devices_of("24,2x80") == [Device(24), Device(80, 2)]
    assert [device.gigabytes for device in devices_of(None)] == [float(gigabytes) for gigabytes in COMMON]


@pytest.mark.parametrize("text", ["H100", "", "0x24", "-3", "24x", "x80", "1e9", "0"])
def test_what_is_no_size_is_refused(text):
    with pytest.raises(BadInput) as refused:
        devices_of(f"16,{text}")
    assert refused.value.where == f"--devices {text}"
    assert "2x80" in refused.value.fix


def test_less_is_usable_than_the_name_says():
    assert 0.92 * 24 * 2**30 > device_of("24").usable_bytes > 0.9 * 24 * 2**30
