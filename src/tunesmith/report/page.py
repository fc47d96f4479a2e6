"""What a run did, on one page: run folder in, `report.html` out.

    write_report(Path("runs/sms"))      # runs/sms/report.html: opens anywhere, asks the network for nothing

It reads the files that the run left (config.yaml, status.json, metrics.jsonl, evaluation.json, samples.jsonl) and computes no
result of its own. Prompts, answers, labels and file names are other people's text: each goes through html.escape, and the charts
draw numbers only. What the page itself guards is in tunesmith/page.py.
"""

import json
from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import Any

from tunesmith.evaluation.metrics import Task, same_answer
from tunesmith.page import bullets, document, section, table, write_page
from tunesmith.progress import counted
from tunesmith.report.curves import learning
from tunesmith.report.facts import counts_in_words, data_files, environment, key_facts, moment_of, verdict
from tunesmith.report.files import Files, mapping, read_folder, texts_of
from tunesmith.report.scores import score_table
from tunesmith.report.tasks import phrasings, task_by_task

MOST_SAMPLES = 16  # shown; the rest stay in samples.jsonl
LONG_PROMPT = 700  # characters; longer ones are folded


def write_report(folder: Path) -> Path:
    """Write the folder's `report.html`: one self-contained page (about 5 MB, most of it the chart library)."""
    return write_page(folder / "report.html", _page(read_folder(folder)))


def _page(files: Files) -> str:
    charts, figures = learning(files)
    task_charts, by_task = task_by_task(files)
    state = files.status.get("state")
    sections = [
        f"<h1>{escape(files.name)}</h1>",
        f'<p class="verdict">{escape(verdict(files))}</p>',
        _state_note(files),
        *(f'<p class="note">Left out: {escape(note)}.</p>' for note in files.left_out),
        table("facts", key_facts(files)),
        section("Before and after", score_table(files), fallback="No test rows were measured."),
        section("Task by task", by_task),
        section("The same rows in other words", phrasings(files)),
        section("Learning", figures, fallback="No steps were recorded yet." if state == "running" else "No steps were recorded."),
        section("Sample answers", _samples(files)),
        section("Data", _data(files)),
        section("What is trained", bullets("arithmetic", texts_of(files.status.get("arithmetic")))),
        section("Command", _command(files)),
        section("Environment", table("facts", environment(files))),
        section(
            "Configuration",
            f"<details><summary>config.yaml, every default filled in</summary><pre>{escape(files.config_text)}</pre></details>",
        ),
    ]
    return document(files.name, sections, charts | task_charts)


def _state_note(files: Files) -> str:
    state, resume = files.status.get("state"), files.status.get("resume_command")
    words = {
        "interrupted": "Interrupted and saved.",
        "failed": "This run did not finish.",
        "running": "This page was written while the run was under way.",
    }
    if state not in words:
        return ""
    how = f" Continue with <code>{escape(str(resume))}</code>" if resume and state != "running" else ""
    return f'<p class="note">{escape(words[state])}{how}</p>'


def _samples(files: Files) -> str:
    task = files.evaluation.get("task")
    known_task: Task = task if task in ("label", "json", "text") else "text"
    shown = files.samples[:MOST_SAMPLES]
    if not shown:
        return ""
    more = (
        f'<p class="note">{len(shown)} of {counted(len(files.samples), "sample")}; all are in samples.jsonl.</p>'
        if len(shown) < len(files.samples)
        else ""
    )
    return more + "\n".join(_sample(sample, known_task) for sample in shown)


def _sample(sample: Mapping[str, Any], task: Task) -> str:
    prompt, reference, answers = _text(sample.get("prompt")), sample.get("reference"), mapping(sample.get("answers"))
    fold = f"<details><summary>prompt of {len(prompt):,} characters</summary><pre>{escape(prompt)}</pre></details>"
    rows = [] if reference is None else [("expected", escape(_text(reference)))]
    for name, answer in answers.items():
        text = _text(answer)
        body = escape(text) if text.strip() else '<span class="note">(empty)</span>'
        rows.append((str(name), body if reference is None else f"{_mark(same_answer(task, text, _text(reference)))} {body}"))
    listed = "".join(f"<dt>{escape(name)}</dt><dd>{body}</dd>\n" for name, body in rows)
    source = f'<div class="source">{escape(_text(sample["source"]))}</div>' if sample.get("source") else ""
    return f"<article>\n{source}{fold if len(prompt) > LONG_PROMPT else f'<pre>{escape(prompt)}</pre>'}\n<dl>\n{listed}</dl>\n</article>"


def _mark(right: bool) -> str:
    return '<span class="mark better">✓ right</span>' if right else '<span class="mark worse">✗ wrong</span>'


def _text(value: Any) -> str:
    return value if isinstance(value, str) else "" if value is None else json.dumps(value, ensure_ascii=False)


def _data(files: Files) -> str:
    checksums = [f"{name}: {sha}" for name, sha in data_files(files)]
    return (
        bullets("said", texts_of(mapping(files.status.get("data")).get("said")))
        + table("facts", counts_in_words(files))
        + bullets("note", checksums)
    )


def _command(files: Files) -> str:
    command = files.status.get("command")
    times = [(word, moment) for word in ("started", "ended") if (moment := moment_of(files.status.get(word)))]
    return (f"<pre>{escape(str(command))}</pre>" if command else "") + table("facts", times)
