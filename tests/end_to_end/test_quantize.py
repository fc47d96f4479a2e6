"""`tunesmith quantize` in its two forms, and what can be done with a quantised model afterwards."""

import json
from pathlib import Path

import pytest
from shell import SHORT, finished, refused, run_here, tree


@pytest.fixture(scope="module")
def in_4_bits(tiny, tmp_path_factory):
    """The tiny base in nf4."""
    folder = tmp_path_factory.mktemp("models") / "tiny-nf4"
    said = run_here("quantize", tiny, "--scheme", "nf4", "--output", folder)
    finished(said)
    assert "4.1" in said.out and "bit for bit" in said.out
    return folder


def test_a_quantised_model_answers_is_fine_tuned_and_measured(in_4_bits, colours, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    prompt = ("--prompt", "what colour is thing 3?", "--max-new-tokens", "4")
    finished(run_here("generate", in_4_bits, *prompt))
    run = ("train", "--model", in_4_bits, "--method", "qlora", "--data", colours, "--output", "runs/q", "--test", "0.25")
    finished(run_here(*run, *SHORT))
    evaluated = run_here("eval", "runs/q", "--json")
    finished(evaluated)
    assert set(json.loads(evaluated.out)["models"]) == {"majority", "base", "q"}
    finished(run_here("generate", "runs/q", *prompt))
    full = ("train", "--model", in_4_bits, "--method", "full", "--data", colours, "--output", "runs/full")
    refused(run_here(*full), "codes cannot be trained", fix="qlora")


def test_embeddings_too_are_stored_trained_on_merged_and_talked_to(tiny, colours, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    prompt = ("--prompt", "what colour is thing 3?", "--max-new-tokens", "4")
    said = run_here("quantize", tiny, "--scheme", "nf4", "--embeddings", "--dtype", "float32", "--output", "small")
    finished(said)
    assert "embeddings too" in said.out and "bit for bit" in said.out and "bitsandbytes has no embeddings in few bits" in said.out
    base = ("train", "--method", "qlora", "--data", colours, "--test", "0.25")
    finished(run_here(*base, "--model", "small", "--output", "runs/stored", *SHORT))
    finished(run_here(*base, "--model", tiny, "--output", "runs/streamed", *SHORT, "--set", "quantization.embeddings=true"))
    metrics = [Path(f"runs/{run}/metrics.jsonl").read_text().splitlines() for run in ("stored", "streamed")]
    losses = [[json.loads(line).get("loss") for line in lines] for lines in metrics]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    for run in ("runs/stored", "runs/streamed"):
        evaluated = run_here("eval", run, "--json")
        finished(evaluated)
        said = run_here("merge", run, "--output", f"{run}-merged")
        finished(said)
        assert "embeddings too, de-quantised) in float32" in said.err
        assert run_here("generate", f"{run}-merged", *prompt).out == run_here("generate", run, *prompt).out
    finished(run_here("chat", "runs/stored", stdin="hello\n/quit\n"))
    full = ("train", "--model", "small", "--method", "full", "--data", colours, "--output", "runs/full")
    refused(run_here(*full), "codes cannot be trained", fix="qlora")


def test_a_study_with_the_embeddings_counts_them(tiny, tmp_path):
    text = tmp_path / "words.txt"
    text.write_text("what colour is thing 3? red or blue? " * 50)
    finished(run_here("quantize", tiny, "--study", "--embeddings", "--text", text, "--output", tmp_path / "s"))
    study = json.loads((tmp_path / "s/study.json").read_text())
    assert study["layers"][0]["name"] == "model.embed_tokens"
    assert all(scheme["name"].endswith("embeddings too") for scheme in study["schemes"])
    assert "norms stay bfloat16" in (tmp_path / "s/index.html").read_text()


def test_a_study_is_a_page_and_its_numbers(tiny, tmp_path):
    text = tmp_path / "words.txt"
    text.write_text("what colour is thing 3? red or blue? " * 50)
    output = tmp_path / "studies/tiny"
    said = run_here("quantize", tiny, "--study", "--text", text, "--output", output, "--scheme", "int4", "--clip", "95")
    finished(said)
    assert "perplexity" in said.out and str(output / "index.html") in said.out
    assert "int8, rows: 8." in said.err  # as it goes along
    assert set(tree(output)) == {"index.html", "study.json"}
    study = json.loads((output / "study.json").read_text())
    assert len(study["schemes"]) == 14
    assert study["schemes"][-1]["name"] == "int4, blocks of 64, clipped at 95 %"
    assert study["schemes"][-1]["figures"]["saturated_share"] > 0.01
    assert "words.txt" in study["n_tokens"]


@pytest.mark.parametrize(
    ("more", "what", "where", "fix"),
    [
        (["--scheme", "nf5"], 'no scheme "nf5"', "--scheme", "nf4"),
        (["--block-size", "128"], "longer than a row", "--block-size", "at most 64"),
        (["--block-size", "7"], "block of 7", "--block-size", "32 to 4096"),
        (["--scheme", "nf4", "--clip", "98"], "no clipping", "--clip", "leave it out"),
        (["--scheme", "int4", "--clip", "99.5"], "nothing would be clipped", "--clip", "98.4"),
        (["--dtype", "half"], 'no dtype "half"', "--dtype", "float32 or bfloat16"),
        (["--dtype", "float16"], 'no dtype "float16"', "--dtype", "float32 or bfloat16"),
        (["--study", "--dtype", "float16"], 'no dtype "float16"', "--dtype", "float32 or bfloat16"),
        (["--text", "words.txt"], "for a study", "--text words.txt", "--study"),
        (["--study", "--clip", "98"], "belong to a scheme", "--study", "--scheme int4"),
        (["--study", "--text", "nowhere.txt"], "cannot be read", "nowhere.txt", "--text FILE"),
        (["--study", "--block-size", "128"], "longer than a row", "--block-size", "at most 64"),
    ],
)
def test_what_cannot_be_done_is_refused_and_nothing_is_written(tiny, tmp_path, more, what, where, fix):
    refused(run_here("quantize", tiny, "--output", tmp_path / "q", *more), what, where, fix)
    assert tree(tmp_path) == {}


def test_outputs_and_models_that_are_not_what_they_should_be(tiny, in_4_bits, trained, tmp_path, tmp_path_factory):
    text = tmp_path_factory.mktemp("file") / "words.txt"
    text.write_text("words")
    for form in ([], ["--study"]):
        refused(run_here("quantize", tiny, "--output", text.parent, *form), "something at the output", str(text.parent), "--output")
        refused(run_here("quantize", tiny, "--output", tmp_path, *form), "the folder that this command runs in", str(tmp_path), "--output")
        refused(run_here("quantize", in_4_bits, "--output", tmp_path / "q", *form), "quantised already", str(in_4_bits), "made from")
    refused(run_here("quantize", trained, "--output", tmp_path / "q"), "a run, not a model", str(trained), "adapter")
    for form in ([], ["--study"]):
        under = run_here("quantize", tiny, "--output", f"{text}/q", *form)
        refused(under, "no folder can be made", f"{text}/q", "another --output")
        assert "quantising" not in under.err and "perplexity" not in under.err
    refused(run_here("quantize", tmp_path / "nowhere", "--output", tmp_path / "q"), "no such model", "nowhere", "")
    assert tree(tmp_path) == {}


def test_an_empty_folder_is_a_place_for_a_model(tiny, trained):
    for name in ("quantized", "merged", "measured"):
        Path(name).mkdir()
    finished(run_here("quantize", tiny, "--output", "quantized"))
    finished(run_here("merge", trained, "--output", "merged"))
    finished(run_here("eval", trained, "--output", "measured"))
    assert all(any(Path(name).iterdir()) for name in ("quantized", "merged", "measured"))
    refused(run_here("merge", trained, "--output", "merged"), "something at the output already", "merged", "another --output")


def test_a_study_whose_blocks_do_not_fit_is_refused_before_anything_is_measured(tiny):
    said = run_here("quantize", tiny, "--study", "--block-size", "128", "--output", "study")
    refused(said, "longer than a row", "--block-size", "at most 64")
    assert "perplexity" not in said.err
