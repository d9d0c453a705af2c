"""Tokenizers of every kind, trained here on the standard library's sources."""

import base64
import functools
import io
import json
import os
from pathlib import Path

import sentencepiece
import tokenizers
from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers, trainers

from maxlm.data.tokenizers.byte_level import PATTERNS, alphabet, to_bytes

BOS, EOS = "<s>", "</s>"
HARD_TEXTS = [
    "",
    " ",
    "\n",
    "a",
    " a",
    "  x  \n\n\ty\t\t \r\n\r",
    "\0\x01\x7f",
    "\u2581 \u2581\u2581a\u2581",
    "\u2585 \u2047 \u2588",
    "<s></s><unk><0x41><pad>",
    "\ufeffx\ufffe\uffff",
    "\u00e9 \u65e5\u672c \U0001f600\u200d\U0001f468",
    "x" * 10_000,
    " " * 10_000,
    "    def f(x):\n        return x\n",
]


@functools.cache
def corpus():
    folder = Path(os.__file__).parent
    return "".join((folder / f"{name}.py").read_text() for name in ("argparse", "enum", "typing"))


def train(pre_tokenizer, *, alphabet=(), vocab_size=900, **model):
    """Return the `tokenizer.json`, as a tree, of byte pairs trained on the corpus."""
    tokenizer = tokenizers.Tokenizer(models.BPE(**model))
    tokenizer.pre_tokenizer = pre_tokenizer
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=["<unk>", BOS, EOS],
        initial_alphabet=list(alphabet),
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus().splitlines(keepends=True), trainer)
    return json.loads(tokenizer.to_str())


@functools.cache
def byte_level_text(pattern="cl100k"):
    split = pre_tokenizers.Split(Regex(PATTERNS[pattern]), "isolated")
    to_letters = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tree = train(pre_tokenizers.Sequence([split, to_letters]), alphabet=alphabet())
    tree["decoder"] = json.loads(decoders.ByteLevel().__getstate__())
    return json.dumps(tree)


def byte_level():
    """Return a byte-level `tokenizer.json`, as a tree of one's own."""
    return json.loads(byte_level_text())


@functools.cache
def marked_text():
    tree = train(pre_tokenizers.Metaspace(prepend_scheme="never"), byte_fallback=True)
    old = tree["model"]["vocab"]
    for byte in range(256):
        old.setdefault(f"<0x{byte:02X}>", len(old))
    tree["normalizer"] = json.loads(normalizers.Replace(" ", "\u2581").__getstate__())
    tree["pre_tokenizer"] = None
    parts = [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()]
    tree["decoder"] = json.loads(decoders.Sequence(parts).__getstate__())
    return json.dumps(tree)


def marked(prefix=None):
    """Return a `tokenizer.json` with byte fallback that writes spaces as U+2581, as published ones
    are converted from SentencePiece.

    Args:
      prefix: who puts a space in front: the normalizer (`prepend`), or the pre-tokenizer, `first`
        or `always`.
    """
    tree = json.loads(marked_text())
    if prefix == "prepend":
        prepend = {"type": "Prepend", "prepend": "\u2581"}
        tree["normalizer"] = {"type": "Sequence", "normalizers": [prepend, tree["normalizer"]]}
    elif prefix:
        tree["normalizer"] = None
        tree["pre_tokenizer"] = {
            "type": "Metaspace",
            "replacement": "\u2581",
            "prepend_scheme": prefix,
            "split": False,
        }
    if prefix:
        tree["decoder"]["decoders"].append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
    return tree


@functools.cache
def unigram_text():
    """Return a Unigram as SentencePiece's are converted: NFKC, runs of spaces as one, no bytes."""
    tokenizer = tokenizers.Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFKC(), normalizers.Replace(Regex(" {2,}"), " ")]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=500,
        special_tokens=["<unk>", BOS, EOS],
        unk_token="<unk>",
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus()[:60_000].splitlines(keepends=True), trainer)
    return tokenizer.to_str()


def unigram(*, exact=False, prefix="always"):
    """Return a Unigram, as a tree of one's own; an exact one has bytes, and no normalizer."""
    tree = json.loads(unigram_text())
    if exact:
        least = min(score for _, score in tree["model"]["vocab"])
        tree["model"]["vocab"] += [[f"<0x{byte:02X}>", least - 5] for byte in range(256)]
        tree["model"]["byte_fallback"] = True
        tree["normalizer"] = None
        tree["pre_tokenizer"] |= {"prepend_scheme": prefix, "split": False}
        parts = [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()]
        tree["decoder"] = json.loads(decoders.Sequence(parts).__getstate__())
    return tree


@functools.cache
def wordpiece_text():
    tokenizer = tokenizers.Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    trainer = trainers.WordPieceTrainer(
        vocab_size=600,
        special_tokens=["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"],
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus()[:60_000].splitlines(), trainer)
    return tokenizer.to_str()


BERT = {"cls_token": "[CLS]", "sep_token": "[SEP]", "unk_token": "[UNK]"}


def write_hf(folder, tree, config=None):
    """Write a `tokenizer.json` and what belongs to it; return the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.json").write_text(json.dumps(tree))
    config = {"bos_token": BOS, "eos_token": {"content": EOS}} if config is None else config
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


def sidecar(ranks, **settings):
    specials = {BOS: ranks + 2, EOS: ranks, "<|x|>": ranks + 5}
    return {
        "pattern": "cl100k",
        "special_tokens": specials,
        "bos_token": BOS,
        "eos_token": EOS,
    } | settings


def write_tiktoken(folder, **settings):
    """Write the byte-level vocabulary as a tiktoken file; return its path."""
    folder.mkdir(parents=True, exist_ok=True)
    tree, characters = byte_level(), alphabet()
    vocab = [name for name in tree["model"]["vocab"] if name not in ("<unk>", BOS, EOS)]
    lines = [
        base64.b64encode(to_bytes(name, characters)) + b" %d\n" % rank
        for rank, name in enumerate(vocab)
    ]
    (folder / "own.tiktoken").write_bytes(b"".join(lines))
    (folder / "own.tiktoken.json").write_text(json.dumps(sidecar(len(vocab), **settings)))
    return folder / "own.tiktoken"


def write_sentencepiece(path, **settings):
    """Train a SentencePiece model; return its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    model = io.BytesIO()
    lossless = {
        "byte_fallback": True,
        "normalization_rule_name": "identity",
        "add_dummy_prefix": False,
        "remove_extra_whitespaces": False,
        "allow_whitespace_only_pieces": True,
        "required_chars": "\u2581",
    }
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["some text to learn from, some more", " text:  more"] * 20),
        model_writer=model,
        model_type="bpe",
        vocab_size=310,
        hard_vocab_limit=False,
        minloglevel=2,
        **(lossless | settings),
    )
    path.write_bytes(model.getvalue())
    return path


def all_kinds(folder):
    """Write a tokenizer of every kind; return their paths by name."""
    nfc = byte_level() | {"normalizer": {"type": "NFC"}}
    return {
        "sentencepiece": write_sentencepiece(folder / "sp/tokenizer.model"),
        "sentencepiece, prefix": write_sentencepiece(folder / "spp/x.model", add_dummy_prefix=True),
        "byte-level": write_hf(folder / "bytes", byte_level()),
        "byte-level, NFC": write_hf(folder / "nfc", nfc),
        "one token ends and starts": write_hf(folder / "one", byte_level(), {"eos_token": EOS}),
        "marked": write_hf(folder / "marked", marked()),
        "marked, prepend": write_hf(folder / "prepend", marked("prepend")),
        "marked, first": write_hf(folder / "first", marked("first")),
        "marked, always": write_hf(folder / "always", marked("always")),
        "unigram": write_hf(folder / "unigram", unigram(exact=True)),
        "unigram, never": write_hf(folder / "never", unigram(exact=True, prefix="never")),
        "tiktoken": write_tiktoken(folder / "tik"),
    }


KINDS = (
    "sentencepiece",
    "sentencepiece, prefix",
    "byte-level",
    "byte-level, NFC",
    "one token ends and starts",
    "marked",
    "marked, prepend",
    "marked, first",
    "marked, always",
    "unigram",
    "unigram, never",
    "tiktoken",
)
