"""Text, pictures and clips to what the model reads, and back."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import BatchFeature, ProcessorMixin

from quadrivium.config import from_dict, to_dict
from quadrivium.data.shards import read_json, write_json
from quadrivium.data.sources import Item, ReadOptions, fitted, read_clips
from quadrivium.text import TextTokenizer
from quadrivium.visual import VisualTokenizer


class QuadriviumProcessor(ProcessorMixin):
    """``processor(text=..., images=..., videos=...)`` -> ``input_ids``, ``attention_mask``, ``frames`` (codes)."""

    attributes: list[str] = []  # noqa: RUF012  (transformers reads it off the class)

    def __init__(self, text: TextTokenizer, visual: VisualTokenizer | None, read: ReadOptions) -> None:
        self.text, self.visual, self.read = text, visual, read

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str, **kwargs: Any) -> "QuadriviumProcessor":
        folder = Path(pretrained_model_name_or_path)
        if not folder.is_dir():
            from huggingface_hub import snapshot_download

            how = {k: v for k, v in kwargs.items() if k in ("revision", "cache_dir", "token", "local_files_only")}
            folder = Path(snapshot_download(str(pretrained_model_name_or_path), **how))
        path = folder / "processor_config.json"
        read = from_dict(ReadOptions, read_json(path, "an exported model").get("read", {}), f"{path}: read")
        visual = VisualTokenizer.load(folder / "visual").eval() if (folder / "visual").is_dir() else None
        return cls(TextTokenizer.load(folder), visual, read)

    def save_pretrained(self, save_directory: Any, **kwargs: Any) -> None:
        """Write what `from_pretrained` reads. The code lies in the folder that this processor was loaded from."""
        folder = Path(save_directory)
        self.text.save(folder, opened=True)
        if self.visual is not None:
            self.visual.save(folder / "visual")
        write_json(folder / "processor_config.json", {"processor_class": type(self).__name__, "read": to_dict(self.read)})

    def __call__(self, text: Any = None, images: Any = None, videos: Any = None, **kwargs: Any) -> BatchFeature:
        """Text: a string or several. Images: a picture (PIL, array or path) or several (also one array (B, H, W, 3)). Videos: paths, or
        frames (F, H, W, 3). Raises ValueError where clips differ in length: a batch holds clips of one."""
        made: dict[str, Any] = {}
        if text is not None:
            rows = self.text.encode_all([text] if isinstance(text, str) else list(text))
            longest = max(map(len, rows)) + 1  # a text opens with the end mark; padding stands on the left
            ids = np.full((len(rows), longest), self.text.end)
            mask = np.zeros_like(ids)
            for i, row in enumerate(rows):
                ids[i, longest - len(row) :], mask[i, longest - len(row) - 1 :] = row, 1
            made |= {"input_ids": torch.from_numpy(ids), "attention_mask": torch.from_numpy(mask)}
        seen = [[self._frame(i)] for i in _several(images, 3)] + [self._clip(v) for v in _several(videos, 4)]
        if seen:
            if self.visual is None:
                raise ValueError("this model was trained on text alone; it sees nothing")
            lengths = {len(clip) for clip in seen}
            if len(lengths) > 1:
                raise ValueError(f"clips of {sorted(lengths)} frames in one batch; give those of a length together")
            codes = [self.visual.encode(np.stack(clip)).astype(np.int64) for clip in seen]
            made["frames"] = torch.from_numpy(np.stack(codes))
        return BatchFeature(made)

    def pictures(self, codes: np.ndarray) -> np.ndarray:
        """Codes (B, F, R, C) -> frames uint8 (B, F, S, S, 3)."""
        assert self.visual is not None
        return self.visual.decode(codes.reshape(-1, *codes.shape[2:])).reshape(*codes.shape[:2], *2 * [self.read.size], 3)

    def decode(self, ids: Any, **kwargs: Any) -> str:
        return self.text.decode(ids)

    def batch_decode(self, rows: Any, **kwargs: Any) -> list[str]:
        return [self.text.decode(ids) for ids in rows]

    def _frame(self, picture: Any) -> np.ndarray:
        if isinstance(picture, str | Path):
            return self._clip(picture, "image")[0]
        return fitted(picture if isinstance(picture, Image.Image) else Image.fromarray(np.asarray(picture)), self.read)

    def _clip(self, video: Any, kind: Any = "video") -> list[np.ndarray]:
        if isinstance(video, str | Path):
            return list(read_clips(Item("", str(video), "", kind, (), Path(video)), self.read)[0])
        return [self._frame(frame) for frame in video]


def _several(given: Any, axes: int) -> list[Any]:
    """A list of things of which one, as an array, has so many ``axes``."""
    if given is None:
        return []
    one = isinstance(given, str | Path | Image.Image) or (isinstance(given, np.ndarray) and given.ndim <= axes)
    return [given] if one else list(given)
