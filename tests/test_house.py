"""The house: imports go one way, the public surface is what is written here, optional packages stay optional."""

import ast
import dataclasses
import subprocess
import sys
from pathlib import Path

import pytest

import quadrivium
from quadrivium.cli import COMMANDS, main

ROOT = Path(quadrivium.__file__).parent

# A file imports only from files above it.
HOUSE = (
    "errors",
    "config",
    "sequence",
    "statistics",
    "pictures",
    "model",
    "data.shards",
    "data.machine",
    "data.language",
    "data.world",
    "data.questions",
    "data.inside",
    "data.sources",
    "data.webdataset",
    "data.tables",
    "data.hub",
    "data.documents",
    "data.subtitles",
    "data.formats",
    "data.decoding",
    "data.judge",
    "data.mixture",
    "data.mixture_file",
    "text",
    "visual",
    "dist",
    "muon",
    "checkpoint",
    "huggingface",
    "generate",
    "evaluate",
    "imagine",
    "ask",
    "distil",
    "samples",
    "findings",
    "tracking",
    "train",
    "memory",
    "prepare",
    "inspect",
    "alignment",
    "library",
    "tasks.documents",
    "harness",
    "endpoints",
    "export",
    "words",
    "guard",
    "play",
    "remote.configuration_quadrivium",
    "remote.modeling_quadrivium",
    "remote.modeling_quadrivium_text",
    "remote.processing_quadrivium",
    "grid",
    "experiment",
    "demo",
    "transfer",
    "report",
    "peers",
    "bench",
    "cli",
)


def module_of(path):
    return ".".join(path.relative_to(ROOT).with_suffix("").parts)


FILES = {module_of(p): p for p in ROOT.rglob("*.py") if p.stem not in ("__init__", "__main__")}


def imports_of(path, whole=True):
    """Modules of this project that a file imports; with ``whole``, also inside functions."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    found = set()
    for node in ast.walk(tree) if whole else tree.body:
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "quadrivium":
            inner = (node.module or "").partition(".")[2]
            found |= {inner} if inner in FILES else {f"{inner}.{a.name}".lstrip(".") for a in node.names}
        if isinstance(node, ast.Import):
            found |= {a.name.partition(".")[2] for a in node.names if a.name.split(".")[0] == "quadrivium"}
    return {m for m in found if m in FILES}


def test_every_file_has_its_place():
    assert sorted(FILES) == sorted(HOUSE)


@pytest.mark.parametrize("name", sorted(FILES))
def test_a_file_imports_only_from_files_above_it(name):
    below = {m for m in imports_of(FILES[name]) if HOUSE.index(m) >= HOUSE.index(name)}
    assert not below, f"{name} imports {below}"


def test_the_model_imports_torch_and_nothing_else():
    tree = ast.parse(FILES["model"].read_text())
    names = {
        (n.module if isinstance(n, ast.ImportFrom) else n.names[0].name).split(".")[0]
        for n in ast.walk(tree)
        if isinstance(n, ast.Import | ast.ImportFrom)
    }
    assert names - set(sys.stdlib_module_names) == {"torch"}


def test_the_commands_are_frozen():
    assert list(COMMANDS) == [
        "demo",
        "world",
        "prepare",
        "train",
        "eval",
        "ask",
        "generate",
        "distil",
        "experiment",
        "transfer",
        "report",
        "export",
        "play",
        "bench",
    ]


def test_the_library_is_frozen():
    import inspect

    assert sorted(quadrivium.__all__) == [
        "ConfigError",
        "DataError",
        "Imagined",
        "ItemError",
        "Quadrivium",
        "QuadriviumError",
        "RunError",
        "__version__",
        "load",
    ]
    assert all(getattr(quadrivium, name) is not None for name in quadrivium.__all__) and dir(quadrivium) == sorted(
        dir(quadrivium)
    )
    model = quadrivium.Quadrivium
    assert [n for n in vars(model) if not n.startswith("_")] == ["generate", "score", "imagine"]
    given = ["text", "image", "video"]
    drawn = ["temperature", "top_p", "seed", "max_ids"]
    assert list(inspect.signature(quadrivium.load).parameters) == ["folder", "device"]
    assert list(inspect.signature(model.generate).parameters) == ["self", "want", *given, "n", "frames", *drawn]
    assert list(inspect.signature(model.score).parameters) == ["self", *given, "given_text", "given_image", "given_video"]
    assert list(inspect.signature(model.imagine).parameters) == ["self", "text", "n", "frames", "forget", *drawn, "tries"]
    assert [f.name for f in dataclasses.fields(quadrivium.Imagined)] == ["frames", "story", "caption"]
    assert all(x.__doc__ for x in (quadrivium.load, model, model.generate, model.score, model.imagine, quadrivium.Imagined))


def test_importing_the_package_is_quick_and_brings_no_torch():
    code = "import time; t = time.perf_counter(); import quadrivium; t = time.perf_counter() - t; import sys; print(t, 'torch' in sys.modules)"
    seconds, torch = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert float(seconds) < 0.3 and torch == "False"


def test_help_and_version_are_quick_and_import_no_torch():
    code = (
        "import sys; from quadrivium.cli import main; main(['--help']); main(['--version']); assert 'torch' not in sys.modules"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert all(name in out for name in COMMANDS) and quadrivium.__version__ in out


def test_no_module_brings_the_compiler_of_torch():
    """It takes as long to import as torch itself; optimizers, `--compile` and a GPU's kernels bring it when they are used."""
    code = (
        "import sys, importlib; [importlib.import_module(m) for m in sys.argv[1:]]; assert 'torch._dynamo' not in sys.modules"
    )
    modules = [f"quadrivium.{name}" for name in HOUSE if not name.startswith(("__", "remote."))]  # what transformers loads
    subprocess.run([sys.executable, "-c", code, *modules], check=True)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_teaches_itself(name, capsys):
    with pytest.raises(SystemExit) as left:
        main([name, "--help"])
    assert left.value.code == 0
    assert len(capsys.readouterr().out) > 200


def test_nothing_pickled_is_ever_loaded():
    for path in FILES.values():
        source = path.read_text(encoding="utf-8")
        assert "pickle" not in source.replace("no pickle", "") and "torch.load" not in source, path
