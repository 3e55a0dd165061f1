# SPDX-License-Identifier: Apache-2.0
import json
import os
import subprocess
import sys
from pathlib import Path

import onnxruntime
import pytest

import segship
import segship.doctor as doctor
from segship.backends import BACKENDS, installed_version
from segship.backends.session import IDENTITY
from segship.errors import BackendUnavailable
from tests.small_bundle import make_bundle


@pytest.fixture(autouse=True)
def without_torch(monkeypatch):
    # Importing torch takes seconds; its devices are tried by the contract of backends.
    tried = doctor._tried
    monkeypatch.setattr(
        doctor, "_tried", lambda name: doctor.BackendStatus(name, True) if name == "torch" else tried(name)
    )


@pytest.fixture
def bundle(tmp_path, monkeypatch):
    found = make_bundle(tmp_path)
    monkeypatch.setattr(doctor, "EMBEDDED_BUNDLE", found.path)
    return found


@pytest.fixture
def no_torch(monkeypatch):
    monkeypatch.setattr(doctor, "BACKENDS", {"onnxruntime": BACKENDS["onnxruntime"]})


def break_module(monkeypatch, name, error):
    real = doctor.import_module

    def importing(module):
        if module == name:
            raise error
        return real(module)

    monkeypatch.setattr(doctor, "import_module", importing)


def test_machine_is_described(bundle, no_torch):
    report = doctor.examine()
    assert report.segship == segship.__version__
    assert report.python == ".".join(str(part) for part in sys.version_info[:3])
    assert report.usable_cores == len(os.sched_getaffinity(0))
    assert report.cpu and report.platform
    assert [package.name for package in report.packages] == list(doctor.CORE_PACKAGES)
    assert all(package.version and package.problem is None for package in report.packages)


def test_report_is_json_and_healthy(bundle, no_torch):
    document = json.loads(json.dumps(doctor.examine().to_dict(), allow_nan=False))
    assert document["healthy"] is True
    assert document["embedded_bundle"] == {"path": str(bundle.path), "problem": None, "command": None}
    (backend,) = document["backends"]
    assert (backend["name"], backend["version"]) == ("onnxruntime", onnxruntime.__version__)
    assert backend["devices"][0] == "cpu"
    assert "CPUExecutionProvider" in backend["providers"]
    assert backend["precisions"] == ["fp32"]


def test_core_packages_are_those_of_the_project_file():
    project = (Path(__file__).parents[1] / "pyproject.toml").read_text(encoding="utf-8")
    listed = project.split("\ndependencies = [")[1].split("]")[0]
    assert sorted(line.split(">")[0].strip(' "') for line in listed.strip().splitlines()) == sorted(
        doctor.CORE_PACKAGES
    )


def test_missing_package_is_a_line_with_its_command(monkeypatch):
    monkeypatch.setattr(doctor, "is_installed", lambda module: False)
    assert doctor._package("rich", "rich") == doctor.PackageStatus(
        "rich", doctor._version("rich"), "not installed", 'pip install "rich"'
    )


@pytest.mark.parametrize(
    "error", [ImportError("libGL.so.1: missing"), RuntimeError("numpy was built for another ABI\nmore")]
)
def test_broken_package_is_a_line_and_not_a_traceback(bundle, no_torch, monkeypatch, error):
    break_module(monkeypatch, "cv2", error)
    report = doctor.examine()
    status = next(package for package in report.packages if package.name == "opencv-python-headless")
    assert status.problem == f"cannot be imported: {type(error).__name__}: {str(error).splitlines()[0]}"
    assert status.command == 'pip install --force-reinstall "opencv-python-headless"'
    assert not report.healthy


def without(monkeypatch, missing):
    monkeypatch.setattr(doctor, "installed_version", lambda name: None if name == missing else installed_version(name))


def test_missing_backend_is_a_line_with_its_extra(bundle, monkeypatch):
    without(monkeypatch, "torch")
    report = doctor.examine()
    torch = next(backend for backend in report.backends if backend.name == "torch")
    assert (torch.available, torch.problem, torch.command) == (False, "not installed", 'pip install "segship[torch]"')
    assert report.healthy


def test_torch_is_not_imported_unless_installed(bundle, monkeypatch):
    asked = []
    without(monkeypatch, "torch")
    monkeypatch.setattr(doctor, "load_backend", lambda name: asked.append(name) or Exception)
    doctor.examine()
    assert asked == [name for name in BACKENDS if name != "torch" and installed_version(name) is not None]


@pytest.mark.parametrize(
    "error", [BackendUnavailable("it is broken; run: this"), OSError("bad ELF"), ZeroDivisionError("odd")]
)
def test_broken_backend_is_a_line_and_not_a_traceback(bundle, no_torch, monkeypatch, error):
    def broken(name):
        raise error

    monkeypatch.setattr(doctor, "load_backend", broken)
    report = doctor.examine()
    (backend,) = report.backends
    assert not backend.available
    assert str(error) in backend.problem
    assert backend.command == 'pip install --force-reinstall "onnxruntime"'
    assert not report.healthy


def test_device_that_does_not_start_is_told(monkeypatch):
    monkeypatch.setattr(
        onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"]
    )
    real = onnxruntime.InferenceSession

    def fall_back(source, providers, **settings):
        return real(source, providers=["CPUExecutionProvider"], **settings)

    monkeypatch.setattr(onnxruntime, "InferenceSession", fall_back)
    status = doctor._backend("onnxruntime")
    assert (status.available, status.devices, status.command) == (True, ("cpu",), None)
    assert status.problem.startswith("cuda does not start: device 'cuda' cannot be had: ONNX Runtime could not start")


def test_runtime_that_does_not_start_at_all_is_told_with_the_package_to_mend(monkeypatch):
    monkeypatch.setattr(onnxruntime, "InferenceSession", lambda *args, **settings: 1 / 0)
    status = doctor._backend("onnxruntime")
    assert (status.available, status.devices) == (False, ())
    assert status.problem.startswith("cpu does not start: ")
    assert status.command == 'pip install --force-reinstall "onnxruntime"'


def test_openvino_is_tried_and_says_the_precisions_of_the_chip(tmp_path, monkeypatch):
    pytest.importorskip("openvino")
    monkeypatch.setenv("SEGSHIP_CACHE", str(tmp_path))
    status = doctor._backend("openvino")
    assert (status.available, status.devices, status.problem) == (True, ("cpu",), None)
    assert status.precisions[0] == "fp32"


def test_choice_of_the_backend_is_told_with_its_reason(bundle, no_torch):
    exact, free = doctor.examine().automatic
    assert (exact.asked, exact.backend, exact.precision) == ("fp32", "onnxruntime", "fp32")
    assert free.asked == "auto" and "nothing was measured" in free.reason


def test_damaged_embedded_bundle_is_told(bundle, no_torch):
    (bundle.path / "mask_decoder.onnx").write_bytes(b"")
    report = doctor.examine()
    assert "mask_decoder.onnx" in report.embedded_bundle.problem
    assert report.embedded_bundle.command == "pip install --force-reinstall --no-deps ."
    assert not report.healthy


def test_cache_folder_that_cannot_be_made_is_told(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setattr("segship.files.cache_folder", lambda: tmp_path / "file" / "segship")
    status = doctor._cache()
    assert status.problem == f"{tmp_path / 'file'} cannot be written"
    assert status.command == f"chmod u+rwx {tmp_path / 'file'}"


def test_cache_folder_need_not_exist_yet(tmp_path, monkeypatch):
    monkeypatch.setattr("segship.files.cache_folder", lambda: tmp_path / "a" / "b")
    assert doctor._cache() == doctor.FolderStatus(str(tmp_path / "a" / "b"))


def test_user_without_a_home_is_told(monkeypatch):
    def homeless():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr("segship.files.cache_folder", homeless)
    assert doctor._cache() == doctor.FolderStatus("", "RuntimeError: Could not determine home directory.")


def test_importing_the_doctor_adds_nothing_that_can_be_broken():
    code = "import sys, segship.doctor; print([name for name in sys.argv[1:] if name in sys.modules])"
    heavy = ["onnxruntime", "pydantic", "cyclopts", "rich", "onnx", "torch"]
    answer = subprocess.run([sys.executable, "-c", code, *heavy], capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "[]"


def test_probe_graph_is_the_graph_it_says():
    import onnx

    model = onnx.load_from_string(IDENTITY.source)
    onnx.checker.check_model(model)
    assert [node.op_type for node in model.graph.node] == ["Identity"]
