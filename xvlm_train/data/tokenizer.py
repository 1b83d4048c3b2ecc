"""WordPiece tokens: a published BERT vocabulary, or one trained from the manifests' own text."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer as Backend
from tokenizers import models, normalizers, pre_tokenizers, trainers

from xvlm_data.errors import UserError
from xvlm_data.manifest import Manifest
from xvlm_train.data.masking import MaskVocabulary
from xvlm_train.data.text import clean_text

PAD, UNK, CLS, SEP, MASK = SPECIALS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
#: Words whose pieces are remembered; some 20 MB.
_WORDS = 100_000
_FILE, _VOCABULARY = "tokenizer.json", "vocab.txt"


class Tokenizer:
    """Text to ids: ``[CLS]`` and word pieces, no ``[SEP]`` (as in the original's pre-training).

    Attributes:
        vocab_size: ids run from 0 to this, exclusive.
        pad_id, cls_id, mask_id: ids of the special tokens; padding is always 0.
    """

    def __init__(self, backend: Backend, name: str = "tokenizer") -> None:
        backend.no_padding()
        backend.no_truncation()
        self._backend = backend
        vocabulary = backend.get_vocab()
        missing = [token for token in SPECIALS if token not in vocabulary]
        # The serialised model tells WordPiece from the byte-level vocabularies of other models.
        kind = json.loads(backend.to_str())["model"]["type"]
        if missing or kind != "WordPiece" or vocabulary[PAD] != 0:
            raise UserError(
                f"{name}: not a BERT vocabulary (WordPiece, {' '.join(SPECIALS)}, [PAD] = 0)",
                "give bert-base-uncased, or train one from the manifests",
            )
        self.vocab_size = 1 + max(vocabulary.values())
        self.pad_id = vocabulary[PAD]
        self.cls_id = vocabulary[CLS]
        self.mask_id = vocabulary[MASK]
        self._words: dict[str, list[int]] = {}

    @cached_property
    def mask_vocabulary(self) -> MaskVocabulary:
        """What :func:`xvlm_train.data.masking.mask_tokens` needs."""
        continues = np.zeros(self.vocab_size, dtype=bool)
        ordinary = []
        for token, index in self._backend.get_vocab().items():
            continues[index] = token.startswith("##")
            if token not in SPECIALS:
                ordinary.append(index)
        random_ids = np.array(sorted(ordinary) or [self.mask_id], dtype=np.int64)
        return MaskVocabulary(self.mask_id, continues, random_ids)

    def encode(self, texts: Sequence[str], max_tokens: int) -> list[list[int]]:
        """Ids of cleaned texts, 1 to ``max_tokens`` each with ``[CLS]`` in front, not padded."""
        split = [text.split() for text in texts]
        try:
            return self._looked_up(split, max_tokens)
        except KeyError:
            self._learn(split)
        return self._looked_up(split, max_tokens)

    def _looked_up(self, split: Sequence[list[str]], max_tokens: int) -> list[list[int]]:
        known = self._words
        found = []
        for words in split:
            ids = [self.cls_id]
            for word in words:
                ids += known[word]
            found.append(ids[:max_tokens])
        return found

    def _learn(self, split: Sequence[list[str]]) -> None:
        """Cut new words into pieces, all in one call; no piece reaches over a space."""
        if len(self._words) > _WORDS:
            self._words.clear()
        known = self._words
        new = list({word for words in split for word in words if word not in known})
        encodings = self._backend.encode_batch_fast(new, add_special_tokens=False)
        known.update((word, e.ids) for word, e in zip(new, encodings, strict=True))

    def tokens(self, ids: Iterable[int]) -> list[str]:
        """The pieces behind ids, for reading and for Grad-CAM captions."""
        return [self._backend.id_to_token(int(index)) or UNK for index in ids]

    def save(self, folder: Path) -> None:
        """Write ``tokenizer.json`` and ``vocab.txt`` (one token a line, in id order)."""
        folder.mkdir(parents=True, exist_ok=True)
        by_id = sorted(self._backend.get_vocab().items(), key=lambda item: item[1])
        _write(folder / _VOCABULARY, "".join(f"{token}\n" for token, _ in by_id))
        _write(folder / _FILE, self._backend.to_str(pretty=True))

    @classmethod
    def load(cls, name_or_folder: str | Path) -> Tokenizer:
        """A tokenizer from a folder (``tokenizer.json`` or ``vocab.txt``) or the Hub.

        Raises:
            UserError: nothing there, no BERT vocabulary, or the Hub cannot be reached.
        """
        folder = Path(name_or_folder)
        if not folder.is_dir():
            return cls(_from_hub(str(name_or_folder)), str(name_or_folder))
        try:
            if (folder / _FILE).is_file():
                return cls(Backend.from_file(str(folder / _FILE)), str(folder))
            if (folder / _VOCABULARY).is_file():
                lines = (folder / _VOCABULARY).read_text(encoding="utf-8").splitlines()
                return cls(_wordpiece({token: i for i, token in enumerate(lines)}), str(folder))
        except UserError:
            raise
        except Exception as error:  # `tokenizers` raises bare Exception
            raise UserError(
                f"{folder}: unreadable tokenizer ({_first_line(error)})",
                "give a folder with vocab.txt or tokenizer.json",
            ) from error
        raise UserError(
            f"{folder}: neither {_FILE} nor {_VOCABULARY}", "give a folder saved by xvlm or BERT's"
        )

    @classmethod
    def train(cls, texts: Iterable[str], vocab_size: int) -> Tokenizer:
        """Train a WordPiece vocabulary on cleaned texts; equal texts give equal vocabularies.

        Args:
            texts: see :func:`training_texts`.
            vocab_size: most tokens, the five special ones included.

        Raises:
            UserError: no text at all, or a ``vocab_size`` too small for the characters seen.
        """
        counts: dict[str, int] = {}
        backend = _wordpiece({token: i for i, token in enumerate(SPECIALS)})
        for text in texts:
            for word, _ in backend.pre_tokenizer.pre_tokenize_str(
                backend.normalizer.normalize_str(text)
            ):
                counts[word] = counts.get(word, 0) + 1
        if not counts:
            raise UserError("no text to build a vocabulary from", "check the manifests' concepts")
        characters = sorted({character for word in counts for character in word})
        # The trainer numbers `##x` pieces in hash order, which changes from run to run, and breaks
        # ties by number. Given the characters as special tokens, it takes them in our order.
        alphabet = [*SPECIALS, *characters, *(f"##{c}" for c in characters)]
        if len(alphabet) > vocab_size:
            raise UserError(
                f"a vocabulary of {vocab_size} is too small for {len(characters)} characters",
                f"give at least {len(alphabet)}",
            )
        trainer = trainers.WordPieceTrainer(
            vocab_size=vocab_size, special_tokens=alphabet, show_progress=False
        )
        trained = _wordpiece({})
        trained.train_from_iterator(_repeated(counts), trainer)
        return cls(_wordpiece(trained.get_vocab()))


def training_texts(manifests: Sequence[Manifest], max_words: int) -> Iterator[str]:
    """Every concept text of the manifests with its attributes, cleaned; one row group at a time."""
    import pyarrow.compute as pc

    for manifest in manifests:
        for batch in manifest.batches(["concepts"]):
            concepts = pc.list_flatten(batch.column("concepts"))
            texts = pc.struct_field(concepts, "text")
            attributes = pc.list_flatten(pc.struct_field(concepts, "attributes"))
            for text in [*texts.to_pylist(), *attributes.to_pylist()]:
                if text and (cleaned := clean_text(text, max_words)):
                    yield cleaned


def _wordpiece(vocabulary: dict[str, int]) -> Backend:
    """BERT's uncased tokenizer around a vocabulary."""
    model = models.WordPiece(vocabulary, unk_token=UNK)
    backend = Backend(model)
    backend.normalizer = normalizers.BertNormalizer(lowercase=True)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.add_special_tokens([token for token in SPECIALS if token in vocabulary])
    return backend


def _repeated(counts: dict[str, int]) -> Iterator[list[str]]:
    for word in sorted(counts):
        left = counts[word]
        while left:  # in bites, so that a word said millions of times costs no memory
            yield [word] * min(left, 1024)
            left -= min(left, 1024)


def _from_hub(name: str) -> Backend:
    if name.startswith((".", "/", "~")):
        raise UserError(f"{name}: no such folder", "give a folder with tokenizer.json or vocab.txt")
    from huggingface_hub import constants, get_session
    from transformers import AutoTokenizer

    try:
        try:
            tokenizer: Any = AutoTokenizer.from_pretrained(name, local_files_only=True)
        except Exception:  # not in the cache
            # One plain request first: the library itself would retry for a minute when offline.
            get_session().head(constants.ENDPOINT, timeout=10)
            tokenizer = AutoTokenizer.from_pretrained(name)
    except Exception as error:  # offline, unknown name, gated: each library layer raises its own
        raise UserError(
            f"tokenizer {name!r} is not to be had ({_first_line(error)})",
            "connect to the Hub, give a local folder, or train a vocabulary from the manifests",
        ) from error
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise UserError(f"tokenizer {name!r} has no fast form", "give bert-base-uncased")
    return Backend.from_str(backend.to_str())


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


def _write(path: Path, content: str) -> None:
    partial = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    partial.write_text(content, encoding="utf-8")
    partial.replace(path)
