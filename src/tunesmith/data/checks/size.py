"""Whether there are rows enough for what is asked of them, in words.

    too_few(table)                 # "80 rows: enough to try; 100–200 good ones are a start …"
    too_few_to_measure(30, "test") # "with 30 test rows an accuracy of 80 % is known to ± 14 points …"

The half-width of a 95 % interval of a share p measured on n rows is 1.96 √(p (1 − p) / n); two models tested on the same n rows must
differ by about 2.8 √(2 p (1 − p) / n) to be told apart in four trials out of five (normal approximation, rows taken as independent, so on
the safe side). Source: Cohen 1988, "Statistical Power Analysis", chapter 6.
"""

from math import sqrt

from tunesmith.data.checks.finding import Finding
from tunesmith.data.checks.table import Table
from tunesmith.progress import counted

A_FEW, A_START, PLENTY = 50, 200, 1000
LEAST_TO_MEASURE, ENOUGH_TO_MEASURE = 100, 400
USUAL_ACCURACY = 0.8


def interval_points(n: int, p: float = USUAL_ACCURACY) -> float:
    """Half the width of the 95 % interval of a share measured on n rows, in percentage points."""
    return 100 * 1.96 * sqrt(p * (1 - p) / n)


def detectable_points(n: int, p: float = USUAL_ACCURACY) -> float:
    """The difference of two shares, each measured on n rows, that is found in 80 % of trials at the 5 % level, in percentage points."""
    return 100 * (1.96 + 0.84) * sqrt(2 * p * (1 - p) / n)


def too_few(table: Table, n_different: int) -> list[Finding]:
    """By different prompts: copies teach nothing new."""
    if table.is_text or n_different > A_START:
        return []
    what = counted(n_different, "different prompt" if n_different < len(table) else "row")
    if n_different < A_FEW:
        reason = f"{what} to learn from: enough to teach a form of answer, not a task; 100 to 200 good pairs are a start"
        return [
            Finding(
                "few-rows", "warning", len(table), (), reason, "collect more; compare with the base model given a few of them in its prompt"
            )
        ]
    reason = (
        f"{what} to learn from are a start: expect the form and the tone of the answers to be learned, and the content as far as the base model "
        f"knows it; about {PLENTY:,} show what more rows would bring"
    )
    return [
        Finding(
            "few-rows",
            "note",
            len(table),
            (),
            reason,
            "train on half of them too (data.limit): if that is nearly as good, more rows will not help",
        )
    ]


def too_few_to_measure(n: int, part: str) -> list[Finding]:
    if n == 0 or n > ENOUGH_TO_MEASURE:
        return []
    reason = (
        f"{counted(n, f'{part} row')}: an accuracy of {USUAL_ACCURACY:.0%} is known to ± {interval_points(n):.0f} points, and two models must differ by "
        f"about {detectable_points(n):.0f} points to be told apart"
    ).replace("80%", "80 %")
    few = n < LEAST_TO_MEASURE
    return [
        Finding(
            f"few-{part}-rows",
            "warning" if few else "note",
            n,
            (),
            reason,
            f"{ENOUGH_TO_MEASURE} rows or more halve that" if few else "see the intervals beside the figures",
        )
    ]
