"""What is built for others: wheel and sdist are whole, hold nothing else, and are described without a broken link."""

import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from dataclasses import dataclass
from email.parser import BytesParser
from pathlib import Path

import places
import pytest

REPOSITORY = places.REPOSITORY
PACKAGE = REPOSITORY / "raybasin"
ADDRESS = "https://example.org/somebody/raybasin"
NOT_OURS = {".git", ".venv", ".venv-oldest-ray", ".ci", ".data", ".cluster", "build", "dist", "data", "results",
            "shared"}  # fmt: skip

spec = importlib.util.spec_from_file_location("setup_py", REPOSITORY / "setup.py")
setup_py = importlib.util.module_from_spec(spec)
spec.loader.exec_module(setup_py)


def python(*arguments, cwd, **environment):
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run([sys.executable, *map(str, arguments)], cwd=cwd, env={**kept, **environment},
                          capture_output=True, text=True, timeout=300)  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@dataclass(frozen=True)
class Built:
    """An sdist, and the wheel that was made from it."""

    sdist: Path
    wheel: Path | None = None

    def in_sdist(self):
        with tarfile.open(self.sdist) as archive:
            files = {member.name.partition("/")[2]: member for member in archive.getmembers() if member.isfile()}
            return {name: archive.extractfile(member).read() for name, member in files.items()}

    def in_wheel(self):
        with zipfile.ZipFile(self.wheel) as archive:
            return {name: archive.read(name) for name in archive.namelist()}

    def description(self):
        return BytesParser().parsebytes(self.in_sdist()["PKG-INFO"]).get_payload(decode=True).decode()


def build(tree, out, *what):
    python("-m", "build", "--no-isolation", *what, "--outdir", out, tree, cwd=out.parent)
    return Built(*out.glob("*.tar.gz"), *out.glob("*.whl"))


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    """The checkout, and in it what work leaves behind."""
    tree = tmp_path_factory.mktemp("tree") / "checkout"

    def left_out(folder, names):
        caches = {name for name in names if name == "__pycache__" or name.endswith((".egg-info", "_cache"))}
        return caches | (NOT_OURS & set(names) if Path(folder) == REPOSITORY else set())

    shutil.copytree(REPOSITORY, tree, ignore=left_out)
    for litter in ("results/digits/cells/a.parquet", "raybasin/__pycache__/cli.cpython-311.pyc", ".venv/lib/x.py",
                   "tests/__pycache__/tiny.cpython-311.pyc", "tests/data/huge.npz", "docs/.ipynb_checkpoints/a.png",
                   ".pytest_cache/README.md", "data/cifar10/x.bin", "soup.safetensors"):  # fmt: skip
        (tree / litter).parent.mkdir(parents=True, exist_ok=True)
        (tree / litter).write_bytes(b"litter")
    return tree


@pytest.fixture(scope="module")
def built(tree, tmp_path_factory):
    return build(tree, tmp_path_factory.mktemp("built") / "dist")


def test_the_wheel_holds_the_package_and_the_sweep_files_and_nothing_else(built):
    held = {name: content for name, content in built.in_wheel().items() if ".dist-info/" not in name}
    modules = {path for path in PACKAGE.rglob("*") if path.suffix in (".py", ".typed", ".jinja", ".js")}
    sweeps = {f"raybasin/shipped/{path.relative_to(REPOSITORY / 'sweeps')}": path.read_bytes()
              for path in (REPOSITORY / "sweeps").rglob("*.yaml")}  # fmt: skip
    assert held == {str(path.relative_to(REPOSITORY)): path.read_bytes() for path in modules} | sweeps
    others = {name.partition(".dist-info/")[2]: content for name, content in built.in_wheel().items()}
    assert others["licenses/LICENSE"] == (REPOSITORY / "LICENSE").read_bytes()
    assert others["METADATA"] == built.in_sdist()["PKG-INFO"]


def test_the_sdist_holds_what_is_kept_in_git_and_nothing_else(built):
    held = {name for name in built.in_sdist() if not name.startswith("raybasin.egg-info/")}
    assert {"LICENSE", "README.md", "tests/test_package.py", "sweeps/digits.yaml", "constraints.txt"} <= held
    listed = subprocess.run(["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
                            cwd=REPOSITORY, capture_output=True)  # fmt: skip
    if listed.returncode:
        pytest.skip("not a git checkout")
    tracked = {name for name in listed.stdout.decode().split("\0") if (REPOSITORY / name).is_file()}
    kept = {name for name in tracked if not name.startswith(".ci/")}
    assert held - {"PKG-INFO", "setup.cfg"} == kept


def test_the_wheel_of_the_sdist_is_that_of_the_checkout(built, tree, tmp_path):
    python("-m", "build", "--no-isolation", "--wheel", "--outdir", tmp_path / "dist", tree, cwd=tmp_path)
    [wheel] = (tmp_path / "dist").iterdir()
    assert Built(built.sdist, wheel).in_wheel() == built.in_wheel()


def test_both_pass_the_check_of_the_index(built):
    said = python("-m", "twine", "--no-color", "check", "--strict", built.sdist, built.wheel, cwd=built.sdist.parent)
    assert said.count("PASSED") == 2


def test_an_installed_wheel_finds_a_sweep_by_name_and_a_checkout_is_not_needed(built, tmp_path):
    target, empty = tmp_path / "target", tmp_path / "empty"
    empty.mkdir()
    python("-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-index", "--no-deps", "--no-compile",
           "--target", target, built.wheel, cwd=empty)  # fmt: skip
    where = python("-c", "from raybasin.sweep import shipped; print(shipped.named('digits').path)", cwd=empty,
                   PYTHONPATH=str(target))  # fmt: skip
    assert Path(where.strip()) == target / "raybasin" / "shipped" / "digits.yaml"
    said = python(target / "bin" / "raybasin", "plan", "digits", cwd=empty, PYTHONPATH=str(target))
    assert said.startswith("sweep digits, settings ") and "cells 30" in said
    assert not list(empty.iterdir())


# The description


def targets(description):
    return re.findall(r"(!?)\[[^\]]+\]\(([^)\s]+)\)", re.sub(r"^```.*?^```$", "", description, flags=re.S | re.M))


def test_without_an_address_the_description_has_no_link_that_leads_nowhere(built):
    if "Repository" in (REPOSITORY / "pyproject.toml").read_text():
        pytest.skip("the repository has an address")
    found = targets(built.description())
    assert found and all(target.startswith("https://") for _, target in found)
    assert "*The map of the demo: " in built.description() and not any(picture for picture, _ in found)


def test_with_an_address_pictures_and_links_are_those_of_the_version(tree, tmp_path):
    addressed = tmp_path / "addressed"
    shutil.copytree(tree, addressed)
    text = re.sub(r"^\[project\.urls\]\n(.+\n)*", "", (addressed / "pyproject.toml").read_text(), flags=re.MULTILINE)
    urls = f'[project.urls]\nRepository = "{ADDRESS}"\n\n[project.scripts]'
    (addressed / "pyproject.toml").write_text(text.replace("[project.scripts]", urls))
    built = build(addressed, tmp_path / "dist", "--sdist")
    found = targets(built.description())
    version = re.search(r'^version = "(.+)"', text, re.MULTILINE)[1]
    pictures = [target for picture, target in found if picture]
    assert pictures == [f"{ADDRESS}/raw/v{version}/docs/images/digits-map.png"]
    own = [target.partition(f"/v{version}/") for _, target in found if target.startswith(ADDRESS)]
    assert len(own) > 10 and {head for head, _, _ in own} == {f"{ADDRESS}/raw", f"{ADDRESS}/blob"}
    assert all((REPOSITORY / file.partition("#")[0]).is_file() for _, _, file in own)
    assert all(target.startswith("https://") for _, target in found)
    assert (addressed / "README.md").read_bytes() == built.in_sdist()["README.md"]  # which has relative ones


def test_code_is_no_link():
    readme = "[a](docs/a.md) ![b](b.png) [c](https://c.org) [d](#d)\n```python\nx[[1]](y)\n[e](e.md)\n```\n"
    kept = "[c](https://c.org) [d](#d)\n```python\nx[[1]](y)\n[e](e.md)\n```\n"
    assert setup_py.long_description(readme, None, "1") == "a *b* " + kept
    absolute = "[a](https://h/o/blob/v1/docs/a.md) ![b](https://h/o/raw/v1/b.png) "
    assert setup_py.long_description(readme, "https://h/o/", "1") == absolute + kept


def test_the_version_is_the_same_everywhere():
    import raybasin

    version = re.search(r'^version = "(.+)"', (REPOSITORY / "pyproject.toml").read_text(), re.MULTILINE)[1]
    cited = re.search(r"^version: (.+)$", (REPOSITORY / "CITATION.cff").read_text(), re.MULTILINE)[1]
    assert raybasin.__version__ == version == cited
