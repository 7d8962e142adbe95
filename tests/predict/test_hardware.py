"""Data sheets: figures that agree with each other, names that people and drivers use, and the GPU of this machine."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from scaling.errors import UsageError
from scaling.predict.hardware import Gpu, gpu, gpus

KNOWN = {
    *("v100-32gb", "a100-40gb-sxm", "a100-40gb-pcie", "a100-80gb-sxm", "a100-80gb-pcie", "h100-sxm", "h100-pcie"),
    *("h100-nvl", "h200-sxm", "h200-nvl", "h20", "gh200", "b200", "gb200", "b300", "mi300x", "mi325x", "l4", "l40s"),
    *("a10g", "rtx-3090", "rtx-4090", "rtx-5090", "rtx-6000-ada", "rtx-pro-6000"),
}

# What torch names each device, where it differs from the catalogue's name by more than the vendor's.
DRIVER_NAMES = {
    "Tesla V100-SXM2-32GB": "v100-32gb",
    "NVIDIA A100-SXM4-40GB": "a100-40gb-sxm",
    "NVIDIA A100-PCIE-40GB": "a100-40gb-pcie",
    "A100-SXM4-80GB": "a100-80gb-sxm",
    "NVIDIA A100 80GB PCIe": "a100-80gb-pcie",
    "NVIDIA H100 80GB HBM3": "h100-sxm",
    "NVIDIA H100 PCIe": "h100-pcie",
    "NVIDIA H100 NVL": "h100-nvl",
    "NVIDIA H200": "h200-sxm",
    "NVIDIA H200 NVL": "h200-nvl",
    "NVIDIA H20": "h20",
    "NVIDIA H800": "h800-sxm",
    "NVIDIA GH200 480GB": "gh200",
    "NVIDIA B200": "b200",
    "NVIDIA GB200": "gb200",
    "NVIDIA B300 SXM6 AC": "b300",
    "AMD Instinct MI300X": "mi300x",
    "AMD Instinct MI325X": "mi325x",
    "NVIDIA L4": "l4",
    "NVIDIA L40S": "l40s",
    "NVIDIA A10G": "a10g",
    "NVIDIA GeForce RTX 3090": "rtx-3090",
    "NVIDIA GeForce RTX 4090": "rtx-4090",
    "NVIDIA GeForce RTX 5090": "rtx-5090",
    "NVIDIA RTX 6000 Ada Generation": "rtx-6000-ada",
    "NVIDIA RTX PRO 6000 Blackwell Server Edition": "rtx-pro-6000",
}

# Consumer GPUs sum 16- and 8-bit products in 32 bits at half of what they do in 16, or of integers.
HALVED = {"rtx-3090", "rtx-4090", "rtx-5090"}


@pytest.fixture(params=list(gpus()))
def sheet(request: pytest.FixtureRequest) -> Gpu:
    return gpus()[request.param]


class TestSheets:
    def test_every_gpu_people_rent_is_there(self) -> None:
        assert set(gpus()) >= KNOWN

    def test_figures_are_of_the_size_that_gpus_have(self, sheet: Gpu) -> None:
        assert 16e9 < sheet.memory_bytes < 300e9
        assert 0.25e12 < sheet.bandwidth_bytes_per_s <= 8e12
        assert 30e9 < sheet.link_bytes_per_s <= 900e9
        assert sheet.link_bytes_per_s < sheet.bandwidth_bytes_per_s
        assert sheet.gpus_per_node in {1, 4, 8, 72}
        assert 70 <= sheet.watts <= 1400

    def test_memory_is_what_the_name_says_less_what_the_device_keeps(self, sheet: Gpu) -> None:
        named = float(re.findall(r"(\d+)GB", sheet.title)[0])
        assert 0.9 * named < sheet.memory_bytes / 2**30 <= named

    def test_rates_are_dense(self, sheet: Gpu) -> None:
        """FLOPs a byte of 16-bit arithmetic: every figure here with sparsity would be beyond."""
        flops = sheet.flops_per_s
        assert set(flops) <= {"float32", "bfloat16", "float16", "float8", "int8", "float4"}
        assert {"float32", "float16"} <= set(flops)
        assert 35 < flops["float16"] / sheet.bandwidth_bytes_per_s < 440
        assert flops["float16"] <= 2500e12

    def test_each_halving_of_a_type_doubles_its_rate(self, sheet: Gpu) -> None:
        flops = sheet.flops_per_s
        assert flops.get("bfloat16", flops["float16"]) == flops["float16"]
        assert flops["float32"] < flops["float16"]
        if "float8" in flops:
            assert flops["float8"] == pytest.approx(2 * flops["float16"], rel=0.02)
        if "int8" in flops and sheet.name != "b300":  # whose integers were given up for 4-bit floats
            assert flops["int8"] == pytest.approx(2 * (1 + (sheet.name in HALVED)) * flops["float16"], rel=0.02)
        if "float4" in flops:
            factor = {"b300": 14 / 4.5, "rtx-5090": 4}.get(sheet.name, 2)
            assert flops["float4"] == pytest.approx(factor * flops["float8"], rel=0.02)

    def test_types_a_generation_cannot_multiply_are_absent(self) -> None:
        assert "bfloat16" not in gpu("v100").flops_per_s
        for name in ("a100", "a100-40gb", "a10g", "rtx-3090"):
            assert "float8" not in gpu(name).flops_per_s
        for name in ("h100", "l4", "mi300x", "rtx-4090"):
            assert "float8" in gpu(name).flops_per_s
            assert "float4" not in gpu(name).flops_per_s

    def test_one_die_in_several_products_multiplies_alike(self) -> None:
        assert gpu("h100").flops_per_s == gpu("h200").flops_per_s == gpu("gh200").flops_per_s == gpu("h800").flops_per_s
        assert gpu("mi300x").flops_per_s == gpu("mi325x").flops_per_s
        assert len({tuple(gpu(name).flops_per_s.items()) for name in gpus() if name.startswith("a100")}) == 1

    def test_each_has_a_document_and_a_title_of_its_own(self, sheet: Gpu) -> None:
        assert any(word in sheet.source for word in ("datasheet", "data sheet", "whitepaper", "specifications"))
        assert [other.name for other in gpus().values() if other.title == sheet.title] == [sheet.name]

    def test_nobody_can_change_them(self, sheet: Gpu) -> None:
        with pytest.raises(TypeError):
            sheet.flops_per_s["float16"] = 1.0  # type: ignore[index]
        with pytest.raises(TypeError):
            gpus()["mine"] = sheet  # type: ignore[index]


class TestNames:
    @pytest.mark.parametrize(("driver", "name"), DRIVER_NAMES.items())
    def test_the_drivers_names_resolve(self, driver: str, name: str) -> None:
        assert gpu(driver).name == name

    def test_every_gpu_has_a_drivers_name(self) -> None:
        assert set(DRIVER_NAMES.values()) == set(gpus())

    @pytest.mark.parametrize(
        ("short", "name"),
        [
            ("h100", "h100-sxm"),
            ("A100", "a100-80gb-sxm"),
            ("RTX 4090", "rtx-4090"),
            (" b200\n", "b200"),
            ("4090", "rtx-4090"),
        ],
    )
    def test_short_names_mean_the_usual_product(self, short: str, name: str) -> None:
        assert gpu(short) is gpus()[name]

    @pytest.mark.parametrize(("typo", "meant"), [("h10", "h100"), ("rtx-4080", "rtx-4090"), ("mi300", "mi300x")])
    def test_a_name_it_does_not_know_is_an_error_with_near_ones_never_a_default(self, typo: str, meant: str) -> None:
        with pytest.raises(UsageError, match=rf"unknown gpu '{typo}'; did you mean .*\b{meant}\b"):
            gpu(typo)

    def test_a_name_that_is_near_nothing_lists_all(self) -> None:
        with pytest.raises(UsageError, match=r"known: .*h100-sxm.*rtx-4090"):
            gpu("")


PYNVML = """
class NVMLError(Exception): pass
NAMES = {names!r}
def nvmlInit():
    if NAMES is None: raise NVMLError("NVML Shared Library Not Found")
def nvmlShutdown(): print("closed")
def nvmlDeviceGetCount(): return len(NAMES)
def nvmlDeviceGetHandleByIndex(i): return i
def nvmlDeviceGetName(handle): return NAMES[handle]
"""

HERE = """
from scaling.errors import UsageError
from scaling.predict.hardware import here
try: print(here().name)
except UsageError as error: print(error)
"""


def here_on_a_machine_with(names: list[str] | None, folder: Path) -> list[str]:
    """What `here` prints in a process whose `pynvml` is a stand-in that finds GPUs of these names, or no driver."""
    (folder / "pynvml.py").write_text(PYNVML.format(names=names))
    path = os.pathsep.join([str(folder), str(Path(__file__).parents[2])])
    ran = subprocess.run(
        [sys.executable, "-c", HERE], env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, check=True
    )
    assert not ran.stderr
    return ran.stdout.splitlines()


class TestHere:
    def test_it_is_the_one_kind_that_nvml_names(self, tmp_path: Path) -> None:
        assert here_on_a_machine_with(["NVIDIA H200"] * 8, tmp_path) == ["closed", "h200-sxm"]

    def test_a_gpu_without_a_sheet_is_an_error(self, tmp_path: Path) -> None:
        closed, error = here_on_a_machine_with(["NVIDIA GeForce GTX 1080"], tmp_path)
        assert closed == "closed"
        assert error.startswith("unknown gpu 'NVIDIA GeForce GTX 1080'; ")

    @pytest.mark.parametrize(
        ("names", "what"),
        [
            ([], "this machine has no GPU where one kind is expected; name one, as in h100-sxm"),
            (
                ["NVIDIA L4", "NVIDIA H100 PCIe"],
                "this machine has NVIDIA H100 PCIe and NVIDIA L4 where one kind is expected; name one, as in h100-sxm",
            ),
        ],
    )
    def test_no_kind_or_several_is_an_error(self, names: list[str], what: str, tmp_path: Path) -> None:
        assert here_on_a_machine_with(names, tmp_path) == ["closed", what]

    def test_no_driver_is_an_error(self, tmp_path: Path) -> None:
        assert here_on_a_machine_with(None, tmp_path) == [
            "no NVIDIA GPU answers on this machine (NVML Shared Library Not Found); name one, as in h100-sxm"
        ]
