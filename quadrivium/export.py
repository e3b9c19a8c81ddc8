"""A run as a Hugging Face folder: its text route alone, which needs no code of ours, or the whole model, which brings it.

The whole model's folder holds the project's own files, import lines turned from ``quadrivium.x`` to ``.x``, and two thin
wrappers from `quadrivium.remote` under the names that transformers looks for.
"""

from __future__ import annotations

import contextlib
import re
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from safetensors.torch import save

from quadrivium import evaluate, harness
from quadrivium.checkpoint import Run
from quadrivium.config import to_dict
from quadrivium.data.shards import read_json, whole, write_atomic, write_json
from quadrivium.errors import QuadriviumError, RunError, one_line
from quadrivium.huggingface import code_of, config_of, weights_of
from quadrivium.samples import one_clip

_PACKAGE = Path(__file__).parent
_IMPORT = re.compile(r"^( *)from quadrivium\.(?:(\w+)\.)?(\w+) import", re.MULTILINE)
WRAPPERS = ("configuration_quadrivium", "modeling_quadrivium", "processing_quadrivium")


def export_text(run: Run, out: Path) -> None:
    """Write the text route as a Qwen3, Qwen2 or Llama folder that transformers loads without any code of ours.

    With sharing ``cross`` it is one of these with other keys and values in its decoder, and the folder holds the code for that.
    """
    config, code = config_of(run.model, run.text.end), code_of(run.model.config)
    more = ", trust_remote_code=True" if code else ""
    load = (
        "from transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
        f'model = AutoModelForCausalLM.from_pretrained("{out.resolve().name}"{more})\n'
        f'tokenizer = AutoTokenizer.from_pretrained("{out.resolve().name}")'
    )
    about = f"The text route of a Quadrivium model, as a plain {config['architectures'][0]} that loads without remote code."
    if code:
        about = "The text route of a Quadrivium model with an encoder and a decoder for text; the code it loads with lies beside it."
    with _new(out) as folder:
        write_atomic(folder / "model.safetensors", save(weights_of(run.model), metadata={"format": "pt"}))
        write_json(folder / "config.json", config)
        for name, written in code.items():
            write_atomic(folder / name, written.encode())
        _words(run, folder)
        _card(run, folder, out.name, about, load, "text-generation")


def export_full(run: Run, out: Path) -> None:
    """Write the whole model, its tokenizers and the code that runs it, for ``trust_remote_code=True``."""
    weights = {f"network.{k}": v.detach().clone() for k, v in run.model.state_dict().items()}
    described = {
        "architectures": ["QuadriviumForCausalLM"],
        "model_type": "quadrivium",
        "auto_map": {
            "AutoConfig": "configuration_quadrivium.QuadriviumConfig",
            "AutoModel": "modeling_quadrivium.QuadriviumForCausalLM",
            "AutoModelForCausalLM": "modeling_quadrivium.QuadriviumForCausalLM",
        },
        "shape": to_dict(run.model.config),
        **({"routes": run.config["routes"]} if "routes" in run.config else {}),
        "vocab_size": run.model.config.vocab,
        "hidden_size": run.model.config.width,
        "num_hidden_layers": run.model.config.layers,
        "tie_word_embeddings": False,  # what is tied here is one matrix, never two to be tied
        "bos_token_id": run.text.end,
        "eos_token_id": run.text.end,
        "dtype": "float32",
        "step": run.step,
    }
    processor = {
        "processor_class": "QuadriviumProcessor",
        "auto_map": {"AutoProcessor": "processing_quadrivium.QuadriviumProcessor"},
        "read": to_dict(one_clip(run)),
    }
    load = (
        "from transformers import AutoModelForCausalLM, AutoProcessor\n\n"
        f'model = AutoModelForCausalLM.from_pretrained("{out.resolve().name}", trust_remote_code=True)\n'
        f'processor = AutoProcessor.from_pretrained("{out.resolve().name}", trust_remote_code=True)\n'
        'given = processor(text="a red ball")\n'
        "pictures = processor.pictures(model.draw(**given, frames_wanted=1))  # uint8 (1, 1, S, S, 3)"
    )
    about = "A Quadrivium model: text to text, text to frames, frames to text and frames to frames in one transformer."
    with _new(out) as folder:
        write_atomic(folder / "model.safetensors", save(weights, metadata={"format": "pt"}))
        for path in _brought():
            write_atomic(folder / path.name, _IMPORT.sub(r"\1from .\3 import", path.read_text(encoding="utf-8")).encode())
        write_json(folder / "config.json", described)
        _words(run, folder)
        if run.visual is not None:
            run.visual.save(folder / "visual")
        write_json(folder / "processor_config.json", processor)
        _card(run, folder, out.name, f"{about} The code it runs on lies beside it.", load, "any-to-any")


def push(folder: Path, repository: str) -> str:
    """Upload a folder to the Hugging Face hub, into a repository that is made private where it is new; returns its address."""
    try:
        from huggingface_hub import HfApi
    except ImportError:
        raise RunError("--push needs the hub's client: pip install -c constraints.txt -e '.[hf]'") from None
    try:
        hub = HfApi()
        hub.create_repo(repository, exist_ok=True, private=True)
        return str(hub.upload_folder(repo_id=repository, folder_path=folder))
    except Exception as error:  # network, permission, a name that is refused: the library raises many types
        raise RunError(
            f"{repository}: the hub did not take it ({one_line(error, 200)}); {folder} is written, try hf auth login"
        ) from None


def _new(out: Path) -> AbstractContextManager[Path]:
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise RunError(f"{out} is not empty; choose another --out")
    return whole(out)


def _brought() -> list[Path]:
    """The wrappers, and every file of this project that they import, or what they import imports."""
    found = [_PACKAGE / "remote" / f"{name}.py" for name in WRAPPERS]
    for path in found:  # which grows on the way
        for _, folder, name in _IMPORT.findall(path.read_text(encoding="utf-8")):
            needed = _PACKAGE / (folder or "").replace(".", "/") / f"{name}.py"
            if needed not in found:
                found.append(needed)
    return found


def _words(run: Run, out: Path) -> None:
    """The text tokenizer, and the mark that opens and closes a text."""
    end = run.text.end
    write_json(out / "generation_config.json", {"bos_token_id": end, "eos_token_id": end, "pad_token_id": end})
    run.text.save(out, opened=True)
    names: dict[str, Any] = dict.fromkeys(("eos_token", "bos_token", "pad_token"), run.text.end_name)
    names |= {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False, "padding_side": "left"}
    write_json(out / "tokenizer_config.json", names)


def _card(run: Run, folder: Path, name: str, about: str, load: str, task: str) -> None:
    """README.md: what this is, what was measured, how it is loaded."""
    size = sum(p.numel() for p in run.model.parameters())
    parts = []
    with contextlib.suppress(QuadriviumError, KeyError):
        own = run.folder / "results.json"  # of a checkpoint that was asked itself
        results = read_json(own if own.is_file() else run.home / "results.json", "results of quadrivium eval")
        if "routes" in results and results["step"] == run.step:  # not of another checkpoint
            data = results.get("data", run.config["data"])
            same = Path(data).resolve() == Path(run.config["data"]).resolve()
            on = "" if same else f" on {Path(data).name}, which is not what it was trained on"
            parts.append(f"Held-out cost, step {run.step}{on}:\n\n```\n{evaluate.table(results, streams=False)}\n```")
        if "lm_eval" in results and results["lm_eval"]["step"] == run.step:
            scored = harness.table(results["lm_eval"]["tasks"])
            parts.append(f"lm-evaluation-harness, step {run.step}:\n\n```\n{scored}\n```")
    measured = "\n\n".join(parts) or "Not measured yet; `quadrivium eval RUN` before the export puts its table here."
    c = run.model.config
    shape = f"{c.layers} layers of width {c.width}, sharing `{c.sharing}`, {size / 1e6:.1f}M parameters with vision, step {run.step}"
    begun = f"\n\nBegun from `{Path(run.config['init']).name}`." if run.config.get("init") else ""
    card = (
        f"---\nlibrary_name: transformers\npipeline_tag: {task}\ntags: [quadrivium]\n---\n\n# {name}\n\n{about}\n\n"
        f"{shape}.{begun}\n\n## Measured\n\n{measured}\n\n## Load\n\n```python\n{load}\n```\n\n"
        f"A text opens and closes with `{run.text.end_name}`.\n"
    )
    write_atomic(folder / "README.md", card.encode())
