"""What comes from strangers runs no code, and names in it lead nowhere: checked in the code itself."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest
import tiny
import yaml

import raybasin
from raybasin.errors import UserError
from raybasin.jobs import local
from raybasin.serving import export
from raybasin.store import folders, inventory, tables

PACKAGE = Path(raybasin.__file__).parent
SOURCES = {str(path.relative_to(PACKAGE)): ast.parse(path.read_text()) for path in sorted(PACKAGE.rglob("*.py"))}

NEVER_IMPORTED = {"cPickle", "dill", "cloudpickle", "marshal", "shelve", "joblib"}
NEVER_CALLED = {
    "eval", "exec", "compile", "__import__", "yaml.load", "yaml.load_all", "yaml.full_load", "yaml.unsafe_load",
    "yaml.Loader", "yaml.FullLoader", "yaml.UnsafeLoader", "os.system", "os.popen", "pd.read_pickle",
    "pandas.read_pickle", "subprocess.run", "subprocess.Popen",
}  # fmt: skip
STARTED = {"jobs/threads.py": "subprocess.Popen([sys.executable, '-m', 'raybasin.jobs.threads'], "}
"""Where a process is started, and how the call begins: always the same program, of the package's own."""


def dotted(node):
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


@pytest.mark.parametrize("name", SOURCES)
def test_nothing_that_is_read_is_run(name):
    for node in ast.walk(SOURCES[name]):
        if isinstance(node, ast.Import | ast.ImportFrom):
            modules = {alias.name for alias in node.names} | {getattr(node, "module", None) or ""}
            assert not {module.partition(".")[0] for module in modules} & NEVER_IMPORTED
            assert not isinstance(node, ast.ImportFrom) or "pickle" not in modules
        if isinstance(node, ast.Attribute | ast.Name):
            used = dotted(node)
            starts = name in STARTED and used == "subprocess.Popen"
            assert not isinstance(node.ctx, ast.Load) or used not in NEVER_CALLED or starts, used
            assert not used.startswith("pickle.") or used == "pickle.dumps", used  # whose length is all that is used
        if isinstance(node, ast.Call):
            keywords = {keyword.arg: keyword.value for keyword in node.keywords}
            if dotted(node.func) == "subprocess.Popen":
                assert ast.unparse(node).startswith(STARTED[name]) and "shell" not in keywords
            if dotted(node.func) == "torch.load":
                assert ast.literal_eval(keywords["weights_only"]) is True
            if dotted(node.func) in ("np.load", "numpy.load"):
                assert ast.literal_eval(keywords["allow_pickle"]) is False
        if isinstance(node, ast.ClassDef) and any("Loader" in dotted(base) for base in node.bases):
            assert [dotted(base) for base in node.bases] == ["yaml.SafeLoader"]


HOSTILE = ("../outside", "/etc/passwd", "..", ".", "", "a/../../b", "a\\b", "a\0b", "a//b")


@pytest.mark.parametrize("name", HOSTILE)
def test_a_name_that_leads_out_of_the_folder_is_refused_in_a_line(name, tmp_path):
    folder = folders.Folder(tmp_path / "r")
    for use in (folder.get, folder.exists, folder.delete, lambda key: folder.put(key, b""),
                lambda key: folder.put_new(key, b""), folder.names):  # fmt: skip
        with pytest.raises(UserError) as caught:
            use(f"weights/{name}")
        assert len(str(caught.value).splitlines()) == 1
    assert not any(tmp_path.iterdir())


def test_a_row_that_names_weights_elsewhere_exports_nothing(copied, tmp_path):
    (tmp_path / "secret.safetensors").write_bytes(b"secret")
    cell_id = copied.plan.cells[0].cell_id
    row = {**tables.row(copied.folder, "cells", cell_id), "soup_sha256": "../../secret"}
    with pytest.raises(UserError, match="not a name inside"):
        export.soup(raybasin.open(copied.folder.root), row, "uniform", tmp_path / "out.safetensors")
    assert not (tmp_path / "out.safetensors").exists()


def test_weights_that_are_not_what_their_name_says_are_not_exported(copied, tmp_path):
    cell_id = copied.plan.cells[0].cell_id
    row = tables.row(copied.folder, "cells", cell_id)
    copied.folder.put(f"weights/{row['soup_sha256']}.safetensors", b"\0" * 64)
    with pytest.raises(UserError, match="damaged"):
        export.soup(raybasin.open(copied.folder.root), row, "uniform", tmp_path / "out.safetensors")


READING = ("status {r}", "map {r} -o {out}/map.png", "report {r} -o {out}/report.html", "scores {r}", "check {r}",
           "soup {r} -o {out}/soup.safetensors", "export {r} -o {out}/exported",
           "compact {r} -o {out}/copy")  # fmt: skip
WATCH = """
import sys
opened = []
watched = ("open", "os.listdir", "os.scandir", "import", "subprocess.Popen", "os.system", "socket.connect")
sys.addaudithook(lambda event, arguments: opened.append(str(arguments[0])) if event in watched else None)
from raybasin import cli
for command in {commands!r}:
    sys.argv = ["raybasin", *command.split()]
    try:
        cli.main()
    except SystemExit as ended:
        print(command.split()[0], ended.code or 0)
touched = [name for name in opened if "somebody" in name]
print("touched", touched)
"""


def test_reading_commands_neither_import_a_factory_nor_look_at_the_paths_of_a_stranger(copied, tmp_path):
    """A folder from elsewhere names a data folder, a checkpoint and a function: none of them is looked at."""
    place = tmp_path / "somebody_data"
    place.mkdir()
    (tmp_path / "somebody_code.py").write_text("raise SystemExit('did run')")
    [name] = copied.folder.names("sweeps")
    tree = yaml.safe_load(copied.folder.get(f"sweeps/{name}"))
    tree["sweep"]["data"]["dir"] = str(place)
    tree["sweep"]["model"] |= {"factory": "somebody_code:net"}
    copied.folder.put(f"sweeps/{name}", yaml.safe_dump(tree).encode())
    commands = [command.format(r=copied.folder.root, out=tmp_path) for command in READING]
    importable = {**os.environ, "PYTHONPATH": f"{PACKAGE.parent}:{tmp_path}"}
    watch = [sys.executable, "-c", WATCH.format(commands=commands)]
    done = subprocess.run(watch, cwd=tmp_path, capture_output=True, text=True, env=importable)
    assert done.returncode == 0, done.stderr
    assert "touched []" in done.stdout, done.stdout
    assert "did run" not in done.stdout + done.stderr
    said = ("map ", "report ", "scores ", "soup ", "export 0")
    assert all(any(line.startswith(one) for line in done.stdout.splitlines()) for one in said)


def test_a_tree_of_references_is_refused(copied):
    [name] = copied.folder.names("sweeps")
    bomb = b"a: &a [x, x]\n" + b"".join(b"%c: &%c [*%c, *%c]\n" % (c, c, c - 1, c - 1) for c in b"bcdefghij")
    copied.folder.put(f"sweeps/{name}", bomb + copied.folder.get(f"sweeps/{name}"))
    with pytest.raises(UserError, match="aliases"):
        inventory.stored_plan(copied.folder, name.removesuffix(".yaml"))


def test_text_of_a_stranger_is_shown_in_one_plain_line(copied, capsys, monkeypatch):
    from raybasin import cli

    cell = copied.plan.cells[0]
    failure = local.Failure(cell, "\x1b[2Jcleared\nand [/bold] more", 1)
    copied.folder.delete(f"cells/{cell.cell_id}.parquet")
    local.record_failure(copied.folder, copied.plan, failure)
    monkeypatch.setattr(sys, "argv", ["raybasin", "status", str(copied.folder.root)])
    with pytest.raises(SystemExit):
        cli.main()
    said = capsys.readouterr().out
    assert "\x1b" not in said and "cleared and [/bold] more" in said


def test_a_sweep_too_large_to_plan_is_refused_at_once():
    for changes in ({"replicates": 10**9}, {"methods__sse__n_members": 1000, "replicates": 10**4}):
        from raybasin.sweep import plan

        with pytest.raises(UserError, match="networks and paths"):
            plan.make(tiny.spec(**changes), tiny.facts())
