"""Text tokenizer: byte-level byte-pair encoding over any script, with the bytes of every id known.

Byte-level BPE (Sennrich et al. 2016, arXiv 1508.07909; bytes as in GPT-2) has no unknown text: every string is a run of
ids, and the ids' bytes add up to the string's UTF-8 bytes, so costs in bits per byte are exact.

Tokenizers of published models are used as they are. Where one rewrites the text before it splits it (Qwen composes
accents, SentencePiece puts a space in front), bytes are those of the text as the tokenizer reads it.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from quadrivium.data.shards import read_json, write_atomic
from quadrivium.errors import ConfigError, RunError, one_line

END = "<|endoftext|>"  # opens and closes every document; the name that GPT-2 and Qwen use
_FILE = "tokenizer.json"
_BYTE = re.compile("<0x[0-9A-F]{2}>")
_MOST = 1 << 22  # ids; tables are sized by the largest, so a file of a few bytes could ask for gigabytes
_BATCH = 1 << 20  # characters that are encoded at once: the library takes about a hundred bytes for each


class TextTokenizer:
    """Strings to ids and back.

    Attributes: ``size`` ids in the vocabulary, ``end`` the id that opens and closes a document, ``id_bytes`` (size,)
    int64 bytes of text that each id stands for (0 for marks), ``dtype`` the smallest integer type that holds an id.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        # Text is data: a user's "<|endoftext|>" is encoded as these letters, never as the mark.
        tokenizer.encode_special_tokens = True
        tokenizer.no_padding()
        tokenizer.no_truncation()
        # Ids may have gaps (some published tokenizers do), so the table is sized by the largest.
        vocabulary = tokenizer.get_vocab(with_added_tokens=True)
        self.size = max(vocabulary.values(), default=0) + 1
        if self.size > _MOST:
            raise ConfigError(f"the text tokenizer has an id {self.size - 1:,}; ids above {_MOST:,} are not served")
        marks = tokenizer.get_added_tokens_decoder()
        end = next((t for t in (END, "</s>", "<|end_of_text|>", "<eos>", "<|im_end|>") if t in vocabulary), None)
        if end is None:
            raise ConfigError(f"the text tokenizer has no end-of-text token; add one named {END}")
        self.end: int = vocabulary[end]
        self.end_name: str = end
        self.dtype: type = np.uint16 if self.size <= 2**16 else np.uint32
        self.id_bytes = np.zeros(self.size, np.int64)
        for token, i in vocabulary.items():
            if i in marks:
                self.id_bytes[i] = 0 if marks[i].special else len(marks[i].content.encode())
            elif not _by_letters(tokenizer):
                self.id_bytes[i] = len(token)  # byte-level: one character of the token's name stands for one byte
            else:
                self.id_bytes[i] = 1 if _BYTE.fullmatch(token) else len(token.replace("▁", " ").encode())

    @classmethod
    def train(cls, texts: Iterable[str], size: int = 8192) -> TextTokenizer:
        """Learn a vocabulary of ``size`` ids (256 bytes and one mark among them) from ``texts``."""
        if size < 257:
            raise ConfigError(f"a byte-level vocabulary has at least 257 ids (256 bytes and one mark), not {size}")
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=size,
            special_tokens=[END],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
        tokenizer.train_from_iterator(_printable(texts), trainer)
        return cls(tokenizer)

    @classmethod
    def load(cls, path: Path) -> TextTokenizer:
        """Load a Hugging Face ``tokenizer.json`` (the file, or the folder that holds it). Nothing in it is executed."""
        file = path / _FILE if path.is_dir() else path
        if not file.is_file():
            raise RunError(f"{file}: no text tokenizer here; give a tokenizer.json or the folder that holds one")
        try:
            layout = read_json(file, "a text tokenizer", most=1 << 28)
            tokenizer = Tokenizer.from_file(str(file))
        except BaseException as error:  # the library raises bare Exception, and where it panics not even that
            if isinstance(error, KeyboardInterrupt | SystemExit):
                raise
            raise RunError(f"{file}: not a readable tokenizer.json ({one_line(error, 200)})") from None
        bytewise = "ByteLevel" in json.dumps([layout.get("pre_tokenizer"), layout.get("decoder")])
        if not bytewise and not _by_letters(tokenizer):
            raise ConfigError(f"{file}: cannot write every text, being neither byte-level nor able to fall back on bytes; "
                              "use a byte-level BPE")  # fmt: skip
        return cls(tokenizer)

    def save(self, folder: Path, opened: bool = False) -> None:
        """Write ``tokenizer.json``, whole or not at all; ``opened``: others who read it are to open a text with the end mark."""
        written = self._tokenizer
        if opened:
            written = Tokenizer.from_str(written.to_str())
            mark = [(self.end_name, self.end)]
            written.post_processor = processors.TemplateProcessing(f"{self.end_name} $A", f"{self.end_name} $A $B", mark)
        write_atomic(folder / _FILE, written.to_str(pretty=True).encode())

    def same(self, other: TextTokenizer) -> bool:
        """Whether both give the same ids for every text."""
        return self._tokenizer.to_str() == other._tokenizer.to_str()

    def encode(self, text: str) -> np.ndarray:
        """Ids (n,) of a string, without marks."""
        return self.encode_all([text])[0]

    def encode_all(self, texts: list[str]) -> list[np.ndarray]:
        """Ids of many strings at once, without marks; several times faster than one by one."""
        ids: list[np.ndarray] = []
        begins = itertools.accumulate((len(t) for t in texts), initial=0)
        for _, part in itertools.groupby(zip(texts, begins, strict=False), lambda p: p[1] // _BATCH):
            encoded = self._tokenizer.encode_batch(list(_printable(t for t, _ in part)), add_special_tokens=False)
            ids += [np.asarray(e.ids, dtype=self.dtype) for e in encoded]
        return ids

    def decode(self, ids: Iterable[int]) -> str:
        """String of ids; marks leave nothing, bytes that are no UTF-8 leave the replacement character."""
        return self._tokenizer.decode([int(i) for i in ids], skip_special_tokens=True)

    def continued(self, before: str, ids: Iterable[int]) -> str:
        """String of ids that go on from the text ``before``, without it: by themselves, ids spelt in letters lose their first space."""
        begun = self.encode(before).tolist()
        return self.decode([*begun, *ids])[len(self.decode(begun)) :]

    def document(self, text: str) -> np.ndarray:
        """A whole document or caption as ids: ``[end, x_1, ..., x_n, end]``."""
        return self.enclose(self.encode(text))

    def enclose(self, ids: np.ndarray) -> np.ndarray:
        """Ids of a whole text -> the same between two end marks, int64."""
        return np.concatenate([[self.end], ids, [self.end]]).astype(np.int64)


def _by_letters(tokenizer: Tokenizer) -> bool:
    """Whether pieces are spelt in letters, ▁ for a space, and bytes such as <0xE3> stand in for letters that are no piece:
    SentencePiece, as in the first Llama models. Otherwise a letter of a piece stands for a byte."""
    return bool(getattr(tokenizer.model, "byte_fallback", False))


def _printable(texts: Iterable[str]) -> Iterator[str]:
    """Lone surrogates are no UTF-8; the tokenizers library refuses the whole call for one."""
    for text in texts:
        yield text.encode("utf-8", "replace").decode("utf-8")
