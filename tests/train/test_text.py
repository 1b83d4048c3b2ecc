from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.train.small_manifests import boxed, concept, row, write
from xvlm_data.errors import UserError
from xvlm_train.data.text import clean_text, says_direction
from xvlm_train.data.tokenizer import SPECIALS, Tokenizer, training_texts

TEXTS = [
    "a red circle left of a blue square",
    "the large green triangle above two small circles",
    "playing with a red bluish squarelike thing",
]


@pytest.mark.parametrize(
    ("raw", "cleaned"),
    [
        ("A Dog", "a dog"),
        *[(f"a{mark}b", "ab") for mark in ",.'!?\"()*#:;~"],
        ("black-and-white", "black and white"),
        ("and/or", "and or"),
        ("<person> sits", "person sits"),
        ("<PERSON>'s hat", "persons hat"),
        ("  a \t lot\n of   space ", "a lot of space"),
        ("50% & more", "50% & more"),
        ("?!", ""),
        (" - / ", ""),
        ("", ""),
    ],
)
def test_cleaning(raw: str, cleaned: str) -> None:
    assert clean_text(raw, 40) == cleaned


def test_only_the_first_words_stay_and_they_are_counted_after_cleaning() -> None:
    assert clean_text("one-two three, four . five", 4) == "one two three four"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("left of the tree", True),
        ("turn right", True),
        ("the leftmost cup", True),
        ("a lefthand drive", True),
        ("an upright piano", False),
        ("leftovers on a plate", False),
        ("a bright lamp", False),
    ],
)
def test_direction_words(text: str, says: bool) -> None:
    assert says_direction(text) is says


def test_ids_are_those_of_transformers_bert_without_sep(tmp_path: Path) -> None:
    from transformers import BertTokenizer

    ours = Tokenizer.train(TEXTS * 10, 120)
    ours.save(tmp_path)
    theirs = BertTokenizer.from_pretrained(tmp_path)
    for text in [*TEXTS, "an unseen circled word", "Ünïcode café ☃"]:
        expected = theirs(text)["input_ids"]
        assert expected[-1] == theirs.sep_token_id
        assert ours.encode([text], 99)[0] == expected[:-1]


def test_truncation_counts_cls() -> None:
    tokenizer = Tokenizer.train(TEXTS * 10, 120)
    (whole,) = tokenizer.encode([TEXTS[0]], 99)
    (cut,) = tokenizer.encode([TEXTS[0]], 5)
    assert cut == whole[:5]
    assert tokenizer.tokens(cut[:2]) == ["[CLS]", "a"]


def test_special_tokens_come_first_and_padding_is_zero() -> None:
    tokenizer = Tokenizer.train(TEXTS, 120)
    assert tuple(tokenizer.tokens(range(5))) == SPECIALS
    assert (tokenizer.pad_id, tokenizer.cls_id, tokenizer.mask_id) == (0, 2, 4)


@pytest.mark.parametrize("only", ["tokenizer.json", "vocab.txt"])
def test_saved_and_loaded(tmp_path: Path, only: str) -> None:
    tokenizer = Tokenizer.train(TEXTS * 10, 120)
    tokenizer.save(tmp_path)
    for name in {"tokenizer.json", "vocab.txt"} - {only}:
        (tmp_path / name).unlink()
    loaded = Tokenizer.load(tmp_path)
    assert loaded.vocab_size == tokenizer.vocab_size
    assert loaded.encode(TEXTS, 40) == tokenizer.encode(TEXTS, 40)
    assert [path.name for path in tmp_path.iterdir()] == [only]


def test_the_vocabulary_is_the_same_in_every_process() -> None:
    # The trainer of `tokenizers` alone gives another one in almost every process.
    code = (
        "import random, hashlib; from xvlm_train.data.tokenizer import Tokenizer; random.seed(0);"
        "w=[''.join(random.choices('abcdefgh', k=random.randint(2, 9))) for _ in range(1500)];"
        "t=Tokenizer.train(w, 300); print(t.vocab_size, hash(1), t.tokens(range(t.vocab_size)))"
    )
    found = {
        subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True
        ).stdout
        for _ in range(3)
    }
    assert len(found) == 1
    assert found.pop().startswith("300 ")


def test_training_texts_hold_every_concept_and_attribute_cleaned(tmp_path: Path) -> None:
    manifest = write(
        tmp_path / "m.parquet",
        [
            row(0, [concept("A Dog."), concept("ball", (0.5, 0.5, 0.2, 0.2), "object", ["Red"])]),
            row(1, [concept(None), concept("!?")]),
            *boxed(5, 2),
        ],
    )
    texts = list(training_texts([manifest], 40))
    assert {"a dog", "ball", "red", "picture four", "thing one of zero"} <= set(texts)
    assert "" not in texts
    assert len(texts) == 3 + 5 * (3 + 2)


def test_mask_vocabulary_knows_continuations_and_ordinary_tokens() -> None:
    tokenizer = Tokenizer.train(TEXTS * 10, 120)
    vocabulary = tokenizer.mask_vocabulary
    for index, token in enumerate(tokenizer.tokens(range(tokenizer.vocab_size))):
        assert vocabulary.continues[index] == token.startswith("##")
        assert (index in vocabulary.random_ids) == (token not in SPECIALS)


def test_bad_tokenizers_are_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def message(where: str | Path) -> str:
        with pytest.raises(UserError) as caught:
            Tokenizer.load(where)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    assert "no such folder" in message(str(tmp_path / "none"))
    assert "neither" in message(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{")
    assert "unreadable" in message(tmp_path)
    bpe = {"version": "1.0", "model": {"type": "BPE", "vocab": {"a": 0}, "merges": []}}
    (tmp_path / "tokenizer.json").write_text(json.dumps(bpe))
    assert "not a BERT vocabulary" in message(tmp_path)

    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    assert "local folder" in message("nobody/no-such-tokenizer")


def test_nothing_to_train_on() -> None:
    with pytest.raises(UserError, match="no text"):
        Tokenizer.train([], 100)
    with pytest.raises(UserError, match="too small"):
        Tokenizer.train(["abcdefgh"], 10)
