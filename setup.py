"""What pyproject.toml cannot say: a wheel holds the files of sweeps/, and in the README as an index shows it every link
leads somewhere."""

import re
import tomllib
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent
LINK = re.compile(r"(!?)\[([^\]]+)\]\((?![a-z]+:|#)([^)\s]+)\)")
"""To a file of the repository: `[text](file)`, or a picture."""


class BuildWithSweeps(build_py):
    """Puts the sweep files beside the modules. An editable install reads them where they are."""

    def run(self) -> None:
        super().run()
        if not self.editable_mode:
            for source, target in self._sweeps():
                self.mkpath(str(Path(target).parent))
                self.copy_file(source, target)

    def get_outputs(self, include_bytecode: bool = True) -> list[str]:
        return [*super().get_outputs(include_bytecode), *(target for _, target in self._sweeps())]

    def _sweeps(self) -> list[tuple[str, str]]:
        folder, target = ROOT / "sweeps", Path(self.build_lib, "raybasin", "shipped")
        return [(str(path), str(target / path.relative_to(folder))) for path in sorted(folder.rglob("*.yaml"))]


def long_description(readme: str, repository: str | None, version: str) -> str:
    """The README with the links to files of the repository made absolute, at the tag of `version`. Where no address of
    the repository is known, a link is its text, and a picture what it is called."""

    def absolute(found: re.Match[str]) -> str:
        picture, text, file = found.groups()
        if repository is None:
            return f"*{text}*" if picture else text
        kind = "raw" if picture else "blob"
        return f"{picture}[{text}]({repository.rstrip('/')}/{kind}/v{version}/{file})"

    parts = re.split(r"(^```.*?^```$)", readme, flags=re.DOTALL | re.MULTILINE)
    parts[::2] = [LINK.sub(absolute, text) for text in parts[::2]]  # what is between them is code
    return "".join(parts)


if __name__ == "__main__":
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    repository = project.get("urls", {}).get("Repository")
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    setup(
        cmdclass={"build_py": BuildWithSweeps},
        long_description=long_description(readme, repository, project["version"]),
        long_description_content_type="text/markdown",
    )
