"""`maxlm data inspect`, `show` and `search` on a prepared corpus."""

import hashlib
import json
import re
import shutil
from collections import Counter

import pytest

from data_pipeline.inspection import corpus as corpus_module
from data_pipeline.inspection.corpus import Corpus
from data_pipeline.inspection.show import _whence
from data_pipeline.inspection.why import Gone, explain
from maxlm import cli
from maxlm.pages import visible
from tests.data.tokenizers.kinds import BOS, EOS, byte_level
from tests.data_pipeline.inspection.conftest import HOSTILE


def identity(corpus, line):
    return f"text/{corpus.parents[1] / 'raw/lines.jsonl'}:{line}"


def test_documents_come_back_with_the_place_they_were_read_from(corpus, data):
    code, out = data("show", identity(corpus, 6), "--characters", "30")
    assert code == 0
    lines = out.splitlines()
    assert lines[0] == identity(corpus, 6)
    assert lines[2].split()[:3] == ["read", "from", f"{corpus.parents[1]}/raw/lines.jsonl,"]
    assert "at :6" in lines[2]
    assert lines[3].startswith("  | needle ")
    assert lines[-2].endswith("more characters")


def test_all_documents_are_those_of_the_tokens(corpus, monkeypatch, make_text):
    monkeypatch.setattr(corpus_module, "AT_A_TIME", 500)
    monkeypatch.setattr(corpus_module, "IDS_AT_A_TIME", 3)
    opened = Corpus(corpus)
    texts = {one.id: text for one, text in opened.texts(opened.documents())}
    for number in range(10, 40):
        path = corpus.parents[1] / f"raw/text{number}.txt"
        assert texts[f"text/{path}"] == path.read_text()
    pieces = sorted((name, text) for name, text in texts.items() if identity(corpus, 7) in name)
    assert len(pieces) > 1
    assert "".join(text for _, text in pieces) == make_text(102, 2000)


def test_pieces_of_a_document_are_found_by_its_id(corpus, data):
    _, out = data("show", identity(corpus, 7), "--json")
    found = [json.loads(line) for line in out.splitlines()]
    assert {one["id"].partition("#")[0] for one in found} == {identity(corpus, 7)}
    assert {one["id"].partition("#")[2] for one in found} == {str(n + 1) for n in range(len(found))}


def test_a_seed_chooses_documents_each_as_likely_as_any(corpus, data):
    opened = Corpus(corpus)
    one, two, three = (opened.sample(5, seed=seed) for seed in (0, 0, 1))
    assert one == two != three
    everything = list(opened.documents())
    assert opened.sample(10**6, seed=0) == everything
    counts = Counter(place for seed in range(400) for place in opened.sample(5, seed=seed))
    expected = 400 * 5 / len(everything)
    assert set(counts) == set(everything)
    assert all(expected / 2 < count < expected * 2 for count in counts.values())
    _, out = data("show", "--random", "3", "--seed", "7", "--json", "--split", "train")
    shown = [json.loads(line)["id"] for line in out.splitlines()]
    assert shown == [one.id for one in opened.sample(3, seed=7, splits=["train"])]


def test_why_names_rule_value_limit_and_the_copy_that_stays(corpus, data):
    two, three, four, five, six = (identity(corpus, line) for line in (2, 3, 4, 5, 6))
    asked = [option for one in (two, four, five, six) for option in ("--why", one)]
    code, out = data("show", *asked, "--json")
    assert code == 0
    found = {one["id"]: one for one in map(json.loads, out.splitlines())}
    assert found[two]["reason"] == "gopher_quality/min_doc_words"
    assert found[two]["measured"] == "9"
    assert found[two]["limit"] == "min_doc_words: 50"
    assert "arXiv:2112.11446" in found[two]["about"]
    assert (found[five]["step"], found[five]["kept"]) == ("02-exact_dedup", three)
    assert (found[four]["step"], found[four]["kept"]) == ("03-near_dedup", three)
    assert found[four]["limit"] == "min_similarity: 0.75"
    assert found[four]["similarity"] == pytest.approx(196 / 197, abs=1e-3)
    assert not found[six]["dropped"]
    _, out = data("show", *asked)
    for line in (
        f"{two}: dropped by step 01-heuristics",
        "  limit       min_doc_words: 50",
        "  Jaccard     0.995",
        f"  | {visible(HOSTILE)} too few words",
        f"{six}: it is in the corpus",
    ):
        assert line in out.splitlines()
    # Ids hold the folder of this run of the tests, and say which split a document is of.
    assert len(re.findall(rf"  what stays  {re.escape(three)} \((?:train|validation) \[", out)) == 2


def test_why_names_the_scores_that_documents_have_which_stay():
    top = {"kind": "top_fraction", "score": "quality", "fraction": 0.1, "keep": "highest"}
    gone = Gone("a", "03-top_fraction", "top_fraction", "0.25")
    found = explain(gone, {"2-top_fraction": top}, {"03-top_fraction": {"least": 0.7}})
    assert found.limit == "fraction: 0.1; quality of at least 0.7"
    found = explain(gone, {"2-top_fraction": top | {"keep": "lowest"}}, {gone.step: {"least": 0.2}})
    assert found.limit == "fraction: 0.1; quality of at most 0.2"
    # Behind a step of another kind, whose settings it has.
    gone = Gone("a", "02-buckets", "buckets/tail", "1.3")
    settings = {"0-url": {}, "1-perplexity": {"kind": "perplexity", "keep": ["head", "middle"]}}
    found = explain(gone, settings, {gone.step: {"up_to": {"head": 0.9, "middle": 1.25}}})
    assert found.limit == "keep: head, middle; head up to 0.9, middle up to 1.25"


def test_why_names_what_a_licence_was_compared_with_and_what_set_aside_means():
    gone = Gone("a", "01-licence", "licence/not_allowed", "GPL-3.0-only")
    found = explain(gone, {"0-licence": {"kind": "licence", "allowed": ["MIT", "ISC"]}}, {})
    assert (found.measured, found.limit) == ("GPL-3.0-only", "allowed: MIT, ISC")
    gone = Gone("a", "01-extract", "set_aside", "it takes longer than 60 s")
    found = explain(gone, {"0-extract": {"kind": "extract"}}, {})
    assert found.about.startswith("The step could not work on it")
    assert found.limit == ""


def test_a_document_that_was_written_says_from_which(corpus):
    opened, origin = Corpus(corpus), identity(corpus, 6)
    rewrite = {"kind": "rewrite", "templates": [{"name": "say"}, {"name": "turn"}]}
    opened.manifest["settings"]["steps"]["9-rewrite"] = rewrite
    assert opened.made_from(f"{origin}#say#2") == (origin, "say")
    assert opened.made_from(f"{origin}#2") is None
    assert opened.made_from(f"{origin}#other") is None
    facts = _whence(opened, f"{origin}#say#1")
    assert list(facts) == ["written from", "by template", "read from"]
    assert re.fullmatch(rf"{re.escape(origin)} \((train|validation) \[\d.*", facts["written from"])
    assert facts["by template"] == "say"
    assert "lines.jsonl, at :6 (SHA-256 " in facts["read from"]
    again = _whence(opened, f"{origin}#say#turn")
    assert again == facts | {
        "written from": f"{origin}#say (not in this corpus)",
        "by template": "turn",
    }


@pytest.mark.parametrize("action", [["show"], ["show", "--why"]])
def test_an_unknown_document_is_said_to_be_unknown(corpus, data, action):
    code, out = data(*action, identity(corpus, 99))
    assert code == 2
    assert "its file was read, but no document at :99" in out
    code, out = data(*action, "text/nowhere")
    assert code == 2
    assert "no document of this id was read" in out


def test_texts_are_searched_in_portions(corpus, data, monkeypatch):
    monkeypatch.setattr(corpus_module, "AT_A_TIME", 300)
    six = identity(corpus, 6)
    code, out = data("search", "needle")
    assert (code, out.splitlines()[-1]) == (0, "1 found")
    assert out.startswith(f"{six}: needle ")
    assert data("search", "NEEDLE")[1] == "0 found\n"
    assert six in data("search", "NEEDLE", "--ignore-case")[1]
    assert data("search", "ne+dle")[1] == "0 found\n"
    assert six in data("search", "^ne+dle", "--regex")[1]
    _, out = data("search", "alpha", "--limit", "4")
    assert out.splitlines()[-1] == "more than 4; --limit says how many are shown"
    assert len(out.splitlines()) == 5
    both = [data("search", "alpha", "--json", "--split", one)[1] for one in ("train", "validation")]
    found = [json.loads(line) for out in both for line in out.splitlines()]
    assert {one["split"] for one in found} == {"train", "validation"}


def test_ids_and_what_was_dropped_are_searched(corpus, data):
    assert data("search", "lines.jsonl:6", "--ids")[1].splitlines()[0] == identity(corpus, 6)
    _, out = data("search", "near_dedup", "--dropped")
    assert out.splitlines() == [
        f"{identity(corpus, 4)}: 03-near_dedup: near_dedup 0.995 like {identity(corpus, 3)}",
        "1 found",
    ]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["search", "(", "--regex"], "'(': not a regular expression"),
        (["search", ""], "nothing to search for"),
        (["search", "a", "--limit", "-1"], "--limit -1: give 0 or more"),
        (["show", "--random", "-1", "--characters", "-2"], "--random -1"),
        (["inspect", "--random", "-1"], "--random -1"),
        (["show", "--tokenizer", "nowhere"], "--tokenizer PATH"),
        (["inspect", "--card", "no/such/folder/card.html"], "no such folder"),
        (["inspect", "--card", "."], "--card .: a folder; name a file in it, such as card.html"),
    ],
)
def test_mistakes_are_named_with_their_cure(data, arguments, message):
    code, out = data(*arguments)
    assert code == 2
    assert message in out
    assert "Traceback" not in out


def test_another_tokenizer_and_other_folders_are_refused(corpus, data, tmp_path, capsys):
    (tmp_path / "tokenizer.json").write_text(json.dumps(byte_level()))
    settings = {"bos_token": BOS, "eos_token": EOS}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    code, out = data("show", "--tokenizer", str(tmp_path))
    assert code == 2
    assert "not the tokenizer of" in out
    assert cli.main(["data", "inspect", str(corpus.parent)]) == 2
    assert "no prepared corpus" in capsys.readouterr().err


def test_a_terminal_obeys_nothing_of_a_text(corpus, data):
    _, out = data("show", identity(corpus, 1), "--characters", "90")
    assert "\x1b" not in out
    assert visible(HOSTILE) in out


def test_inspect_says_what_it_was_made_from_and_what_each_step_let_through(corpus, data):
    code, out = data("inspect", "--random", "1")
    assert code == 0
    lines = out.splitlines()
    assert any(line.split() == ["licence", "CC-BY", "<4.0>"] for line in lines)
    assert any(line.endswith("licences of documents  CC-BY <4.0> 30, mit<b> 7") for line in lines)
    columns = {line.split()[0]: line.split() for line in lines if line[:2].isdigit()}
    assert columns["00-read"][1] == "37"
    assert columns["01-heuristics"][1:2] + columns["01-heuristics"][4:5] == ["36", "1"]
    assert columns["03-near_dedup"][1] == "34"
    _, out = data("inspect", "--json")
    found = json.loads(out)
    assert found["manifest"]["licence"] == "CC-BY <4.0>"
    assert {"python", "resiliparse", "py3langid"} <= found["manifest"]["versions"].keys()
    assert found["manifest"]["tokenizer"] == "../tokenizer.model"


def test_the_manifest_names_files_that_steps_read(run_config, do, tmp_path):
    words = tmp_path / "words.txt"
    words.write_text("nothing\n")
    steps = [{"kind": "toxicity", "lexicon": {"files": [str(words)]}}]
    do(run_config(pipeline={"steps": steps}))
    manifest = Corpus(tmp_path / "out/text").manifest
    sha256 = hashlib.sha256(words.read_bytes()).hexdigest()
    assert manifest["step_files"] == {str(words): sha256}


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("inputs.jsonl", ["show", "--why", "text/x"]),
        ("report.json", ["inspect"]),
        ("dropped.parquet", ["search", "needle", "--dropped"]),
        ("train/shard-00000.documents.parquet", ["search", "needle"]),
        ("train/index.json", ["search", "needle"]),
    ],
)
def test_damaged_files_are_named_with_their_cure(corpus, tmp_path, capsys, name, arguments):
    folder = shutil.copytree(corpus, tmp_path / "copy")
    for damage in (b"1\n", None):
        (folder / name).unlink() if damage is None else (folder / name).write_bytes(damage)
        assert cli.main(["data", arguments[0], str(folder), *arguments[1:]]) == 2
        said = capsys.readouterr().err
        assert str((folder / name).parent) in said
        assert said.rstrip().endswith("maxlm prepare RUN.yaml --force")
