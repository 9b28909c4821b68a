"""What is built and installed is all of flowkit, under its own names, and nothing else."""

from __future__ import annotations

import configparser
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from email.parser import Parser
from importlib import metadata
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
MAPPED = {
    "plugins": "flowkit.plugins",
    "metadata_service": "flowkit.metadata_service",
    "tutorials": "flowkit.tutorials",
}
TUTORIALS = [
    *("00-hello", "01-flights", "02-delays", "03-digits", "04-resume", "05-config", "06-notebook", "08-cloud"),
    "09-production",
]
LEFT_OUT = shutil.ignore_patterns(".*", "__pycache__", "build", "dist", "*.egg-info")


def _setup() -> configparser.ConfigParser:
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg", encoding="utf-8")
    return parser


def _lines(section: str, option: str) -> list[str]:
    return [line for line in _setup()[section][option].splitlines() if line and not line.startswith("#")]


def _packages_on_disk() -> set[str]:
    found = set()
    for folder, package in {"flowkit": "flowkit", **MAPPED}.items():
        for init in (ROOT / folder).rglob("__init__.py"):
            found.add(".".join((package, *init.parent.relative_to(ROOT / folder).parts)))
    return found


def _modules_on_disk() -> set[str]:
    """Every file that belongs into the wheel, by its name there."""
    found = set()
    for folder, package in {"flowkit": "flowkit", **MAPPED}.items():
        for path in (ROOT / folder).rglob("*"):
            inside = path.relative_to(ROOT / folder)
            hidden = any(name.startswith(".") or name == "__pycache__" for name in inside.parts)
            if path.is_file() and not hidden:
                found.add(f"{package.replace('.', '/')}/{inside.as_posix()}")
    return found


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """An sdist made from a copy of the repository, and from it, unpacked elsewhere, a wheel and an editable wheel."""
    folder = tmp_path_factory.mktemp("built")
    copy, out = folder / "copy", folder / "out"
    shutil.copytree(ROOT, copy, ignore=LEFT_OUT)
    for hidden in (".ci", ".pre-commit-config.yaml"):
        (shutil.copytree if (ROOT / hidden).is_dir() else shutil.copy)(ROOT / hidden, copy / hidden)
    out.mkdir()
    sdist = out / _build("build_sdist", copy, out)
    with tarfile.open(sdist) as archive:
        archive.extractall(folder / "unpacked", **({"filter": "data"} if hasattr(tarfile, "data_filter") else {}))
    (source,) = (folder / "unpacked").iterdir()
    wheel = out / _build("build_wheel", source, out)
    editable = folder / "editable"
    editable.mkdir()
    with zipfile.ZipFile(editable / _build("build_editable", source, editable)) as archive:
        archive.extractall(editable)
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder / "installed")
    return {"sdist": source, "wheel": wheel, "editable": editable, "installed": folder / "installed"}


def _build(hook: str, source: Path, out: Path) -> str:
    code = f"import setuptools.build_meta as backend; print('made', backend.{hook}({str(out)!r}))"
    done = subprocess.run([sys.executable, "-c", code], cwd=source, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.rsplit("made ", 1)[1].strip()


def _python(code: str, *paths: Path, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run code where nothing but the standard library and the given site folders can be imported."""
    sites = "".join(f"site.addsitedir({str(path)!r}); " for path in paths)
    return subprocess.run(
        [sys.executable, "-S", "-c", f"import site; {sites}{code}"],
        cwd=cwd or os.path.sep,
        env={"PATH": os.environ["PATH"]},
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_the_packages_list_is_what_the_folders_hold() -> None:
    assert sorted(_lines("options", "packages")) == sorted(_packages_on_disk())


def test_every_mapped_folder_is_named() -> None:
    named = dict(line.split(" = ") for line in _lines("options", "package_dir"))
    assert named == {"flowkit": "flowkit", **{package: folder for folder, package in MAPPED.items()}}


def test_every_folder_with_modules_is_a_package() -> None:
    for folder in ("flowkit", "plugins", "metadata_service"):
        for module in (ROOT / folder).rglob("*.py"):
            assert (module.parent / "__init__.py").exists(), f"{module.parent} has no __init__.py"


def test_the_wheel_holds_every_file_and_nothing_else(built: dict[str, Path]) -> None:
    with zipfile.ZipFile(built["wheel"]) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
    assert names == _modules_on_disk()


def test_the_wheel_holds_the_tutorials_and_the_marker_for_types(built: dict[str, Path]) -> None:
    assert (built["installed"] / "flowkit" / "py.typed").is_file()
    for name in TUTORIALS:
        folder = built["installed"] / "flowkit" / "tutorials" / name
        assert (folder / "flow.py").is_file() or (folder / "notebook.ipynb").is_file()
        assert (built["installed"] / "flowkit" / "tutorials" / name / "README.md").is_file()


def test_the_wheel_names_no_machine(built: dict[str, Path]) -> None:
    for path in built["installed"].rglob("*"):
        if path.is_file():
            assert str(ROOT).encode() not in path.read_bytes(), path


def test_the_sdist_holds_what_the_repository_needs(built: dict[str, Path]) -> None:
    for name in (
        "LICENSE",
        "README.md",
        "CHANGELOG.md",
        "Makefile",
        ".ci/run",
        "setup.cfg",
        "pyproject.toml",
        "plugins/__init__.py",
        "metadata_service/__init__.py",
        "tests/conftest.py",
        "deploy/service/Dockerfile",
        "deploy/service/Dockerfile.dockerignore",
        "deploy/service/env.example",
        "docs/exit_codes.md",
        "benchmarks/README.md",
        "tutorials/__init__.py",
    ):
        assert (built["sdist"] / name).is_file(), name


def test_the_wheel_describes_itself(built: dict[str, Path]) -> None:
    (info,) = built["installed"].glob("*.dist-info")
    fields = Parser().parsestr((info / "METADATA").read_text(encoding="utf-8"))
    assert fields["Name"] == "flowkit"
    assert fields["Requires-Python"] == ">=3.10"
    assert "Apache-2.0" in (fields["License"] or fields["License-Expression"])
    extras = set(fields.get_all("Provides-Extra"))
    assert extras == {
        "all",
        "arrow",
        "aws",
        "dev",
        "docker",
        "kubernetes",
        "service",
        "service-client",
        "tutorials",
        "yaml",
    }
    core = {line.split(">")[0].strip() for line in fields.get_all("Requires-Dist") if "extra ==" not in line}
    assert core == {"click", "cloudpickle", "blake3", "tomli", "cronsim"}
    licence = next(info.rglob("LICENSE")).read_text(encoding="utf-8")
    assert "Apache License" in licence
    assert "END OF TERMS AND CONDITIONS" in licence


@pytest.mark.parametrize("kind", ["installed", "editable"])
def test_installed_packages_import_under_their_names(built: dict[str, Path], kind: str) -> None:
    code = "import flowkit, flowkit.plugins, flowkit.metadata_service, flowkit.tutorials; print(flowkit.__version__)"
    done = _python(code, built[kind])
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == metadata.version("flowkit")


@pytest.mark.parametrize("kind", ["installed", "editable"])
@pytest.mark.parametrize("name", MAPPED)
def test_no_other_name_is_installed(built: dict[str, Path], kind: str, name: str) -> None:
    done = _python(f"import {name}", built[kind])
    assert f"No module named '{name}'" in done.stderr


@pytest.mark.parametrize("name", MAPPED)
def test_a_folder_refuses_any_other_name(name: str) -> None:
    done = _python(f"sys = __import__('sys'); sys.path.insert(0, {str(ROOT)!r}); import {name}")
    assert done.returncode == 1
    assert f"ImportError: this folder is the package {MAPPED[name]} and was imported as '{name}'" in done.stderr


def test_the_console_script_is_a_function() -> None:
    (script,) = [point for point in metadata.entry_points(group="console_scripts") if point.name == "flowkit"]
    assert callable(script.load())


def test_the_suite_does_not_see_the_repository() -> None:
    assert ROOT not in [Path(entry or os.curdir).resolve() for entry in sys.path]


def test_the_tutorials_are_found_where_they_are_installed() -> None:
    import flowkit.tutorials

    (folder,) = flowkit.tutorials.__path__
    assert {path.name for path in Path(folder).iterdir() if path.is_dir() and path.name[0].isdigit()} == set(TUTORIALS)
