"""Rows painted token by token as one self-contained page.

    write_rows(seen, ["sms.tsv: TSV, 5,574 rows, …"], Path("rows.html"), "sms.yaml")

Every token is a word of the page with its id and its place when pointed at. Rows are other people's text: all of it goes through html.escape.
"""

from collections.abc import Sequence
from html import escape
from pathlib import Path

from tunesmith.data.show import Seen, Token, facts
from tunesmith.page import document, section, table, write_page
from tunesmith.progress import counted

MOST_TOKENS = 20_000  # of an example; a page with more is slow to open
STYLE = """<style>
.remark { font-weight: 600; }
.row { font: 14px/1.9 ui-monospace, monospace; white-space: pre-wrap; overflow-wrap: anywhere; }
.row i { font-style: normal; color: var(--soft); border-radius: .2rem; }
.row i.t { color: #0b3d1e; background: #a9e5bd; }
.row i.k { color: #7a3db8; font-weight: 600; }
.row i.t.k { color: #fff; background: #1d7a41; }
.row i.x, .row i.t.x, .row i.t.k.x { color: var(--bad); background: none; text-decoration: line-through; }
.row i + i { margin-left: 1px; }
.row b { display: block; font: 600 .8rem/1.4 system-ui, sans-serif; color: var(--soft); border-top: 2px solid var(--soft); margin: .5rem 0 .2rem; }
.row b:first-child { margin-top: 0; }
.row s { text-decoration: none; opacity: .45; }
@media (prefers-color-scheme: dark) {
  .row i.t { color: #d6ffe3; background: #175c33; }
  .row i.k { color: #c79bf2; }
  .row i.t.k { color: #06210f; background: #6fd08c; }
  .row i.x, .row i.t.x, .row i.t.k.x { color: var(--bad); background: none; }
}
</style>"""
LEGEND = (
    '<p class="row"><i class="t">trained</i>  <i>ignored: in the context only</i>  <i class="k">control token</i>  '
    '<i class="t k">trained control token</i>  <i class="x">beyond the length limit</i></p>'
)


def write_rows(seen: Sequence[Seen], said: Sequence[str], path: Path, name: str) -> Path:
    return write_page(path, page(seen, said, name))


def page(seen: Sequence[Seen], said: Sequence[str], name: str) -> str:
    title = f"What the model sees: {Path(name).name}"
    sections = [
        STYLE + f"<h1>{escape(title)}</h1>",
        f'<p class="verdict">{counted(len(seen), "example")}</p>',
        table("facts", [("recognised" if i == 0 else "", line) for i, line in enumerate(said)]),
        LEGEND,
        *(section(one.title, example(one)) for one in seen),
    ]
    return document(f"rows of {Path(name).name}", sections, {})


def example(one: Seen) -> str:
    counts = facts(one)
    words = [
        counted(counts["tokens"], "token"),
        f"{counts['trained']:,} trained",
        *([f"{counts['cut']:,} beyond the limit"] if counts["cut"] else []),
    ]
    remark = f'<p class="remark">{escape(one.remark)}</p>' if one.remark else ""
    if not one.tokens:
        return remark
    more = f'<p class="note">… and {len(one.tokens) - MOST_TOKENS:,} more tokens</p>' if len(one.tokens) > MOST_TOKENS else ""
    painted = "".join(border(one, i) + painted_token(token, i) for i, token in enumerate(one.tokens[:MOST_TOKENS]))
    text = f"<details><summary>rendered text</summary><pre>{escape(one.text)}</pre></details>"
    return f'{remark}<p class="note">{", ".join(words)}</p>\n<article class="row">{painted}</article>{more}\n{text}'


def border(one: Seen, i: int) -> str:
    """The source of each document where it begins, if there are several."""
    document = one.tokens[i].document
    begins = len(one.borders) > 1 and (i == 0 or document != one.tokens[i - 1].document)
    return f"<b>{escape(one.borders[document])}</b>" if begins else ""


def painted_token(token: Token, place: int) -> str:
    kinds = " ".join(mark for mark, holds in (("t", token.trained), ("k", token.control), ("x", token.cut)) if holds)
    text = escape(token.text).replace("\n", "<s>⏎</s>\n").replace("\t", "<s>⇥</s>\t") or "<s>·</s>"
    return f'<i{f" class={chr(34)}{kinds}{chr(34)}" if kinds else ""} title="{place}: id {token.id}">{text}</i>'
