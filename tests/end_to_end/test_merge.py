"""`tunesmith merge` as a person runs it: the figures it prints, the model it leaves, and what it refuses."""

import json
import resource
from pathlib import Path

from shell import SHORT, finished, refused, run_here, tree


def test_a_merged_run_answers_as_the_run_and_says_how_near_it_is(trained):
    said = run_here("merge", trained, "--output", "merged")
    assert said.code == 0, said.err
    assert "14 layers of the adapter folded into" in said.err
    assert "comparing on 12 rows of the run's test rows" in said.err
    for words in ("max |Δlogit|", "mean KL", "top-1 agreement", "bfloat16", "the base alone"):
        assert words in said.out, words
    assert "computed in float32" in said.out
    kept = json.loads(Path("merged/merge.json").read_text())
    assert kept["parity"]["bfloat16"]["kl"] < 0.01 * kept["without_adapter"]["kl"]
    question = "what colour is thing 5?"
    assert run_here("generate", "merged", "--prompt", question).out == run_here("generate", trained, "--prompt", question).out
    again = run_here("merge", trained, "--output", "merged")
    refused(again, "something at the output already", "merged", "another --output")


def test_the_table_says_what_all_was_computed_in_where_that_is_not_what_was_written(tiny, colours):
    run = ("train", "--model", tiny, "--data", colours, "--output", "runs/b", "--test", "0.25", *SHORT, "--set", "training.dtype=bfloat16")
    finished(run_here(*run))
    said = run_here("merge", "runs/b", "--output", "merged", "--dtype", "float32")
    finished(said)
    assert "computed in bfloat16" in said.out and "float32" in said.out
    assert json.loads(Path("merged/merge.json").read_text())["computed_in"] == "bfloat16"


def test_four_bits_are_written_only_on_request_and_beside_the_16_bit_figures(trained):
    said = run_here("merge", trained, "--output", "small", "--scheme", "nf4", "--json")
    assert said.code == 0, said.err
    found = json.loads(said.out)
    assert list(found["parity"]) == ["bfloat16", "nf4, blocks of 64, scales in 8 bits"]
    assert found["parity"]["nf4, blocks of 64, scales in 8 bits"]["kl"] > 10 * found["parity"]["bfloat16"]["kl"] > 0
    assert "quantization_config" in json.loads(Path("small/config.json").read_text())
    assert run_here("generate", "small", "--prompt", "what colour is thing 5?").code == 0


def test_what_cannot_be_merged_is_refused_in_words(trained, tiny, other_tiny):
    refused(run_here("merge", tiny, "--output", "out"), "this is a model, not an adapter", tiny, "a run or its adapter folder")
    refused(run_here("merge", trained, "--output", "out", "--model", other_tiny), "whose weights are not these", fix="load the base")
    refused(run_here("merge", trained, "--output", "out", "--scheme", "nf5"), 'no scheme "nf5"', "--scheme", "nf4")
    refused(run_here("merge", trained, "--output", "out", "--block-size", "64"), "belong to a scheme", fix="--scheme nf4")
    refused(run_here("merge", trained, "--output", "out", "--embeddings"), "belong to a scheme", fix="--scheme nf4")
    float16 = run_here("merge", trained, "--output", "out", "--dtype", "float16")
    refused(float16, 'no dtype "float16"', "--dtype float16", "float32 or bfloat16")
    assert float16.err.startswith("error"), "before any work"
    Path("file").write_text("")
    under = run_here("merge", trained, "--output", "file/out")
    refused(under, "no folder can be made", "file/out", "another --output")
    assert under.err.startswith("error"), "before any work"
    refused(run_here("merge", trained, "--output", "out", "--data", "nowhere.jsonl"), "no such", "nowhere.jsonl")
    refused(run_here("merge", trained / "adapter", "--output", "out", "--model", "./none"), "there is no such model folder", "none")
    assert not Path("out").exists()


def test_a_write_that_fails_leaves_nothing_behind(trained):
    """Writing a file beyond 100 kB fails, as on a full disk; the tokenizer fits, the weights do not."""
    before, limits = tree(Path()), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        said = run_here("merge", trained, "--output", "merged")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    refused(said, "a file may not be that large here", "merged", "run the command again", code=1)
    assert tree(Path()) == before
