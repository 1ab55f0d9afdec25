"""How well rules that do not use the model find what a step uses, in the families whose graphs are balanced.

    python -m workbench.pocket.balance          # a table for dag, boxes and tree, from 2,000 problems per length

AUROC of three rules over all pairs of steps (`Problem.pairs`): nearness; equal value; shared name. In a family in which
a step mostly uses the step before it, nearness alone finds nearly every edge, so a benchmark on it cannot tell a good
method from none. In dag, boxes and tree it is near chance for all lengths of four or more. A spoken chain prints what
it uses, so names give its graph away; in a terse chain they do not.
"""

import argparse
import re
import sys
from collections.abc import Callable
from random import Random

import numpy as np

from workbench.analysis.statistics import auroc
from workbench.pocket.families import DAGS, FAMILIES, make
from workbench.pocket.problems import Problem, Step, Wording

NAME = re.compile(r"\b[a-z]\b|\b[A-Z][a-z]+\b")  # a label or a person


def nearness(earlier: Step, later: Step, distance: int) -> float:
    """Steps that are nearer score higher."""
    return -distance


def equal_value(earlier: Step, later: Step, distance: int) -> float:
    """How many values (digits, or colors) the results of both steps have in common."""
    return len({*earlier.value.split()} & {*later.value.split()})


def shared_name(earlier: Step, later: Step, distance: int) -> float:
    """How many labels and people the texts of both steps have in common.

    >>> shared_name(Step("a=7-2 so a=5", "5"), Step("b=a+4=5+4 so b=9", "9"), 1)
    1
    """
    return len({*NAME.findall(earlier.text)} & {*NAME.findall(later.text)})


Rule = Callable[[Step, Step, int], float]
BASELINES: dict[str, Rule] = {"nearness": nearness, "equal value": equal_value, "shared name": shared_name}


def rule_auroc(problems: list[Problem], rule: Rule) -> float:
    """AUROC of a rule over all pairs of steps of these problems.

    >>> from workbench.pocket.families.dag import Dag
    >>> problem = Problem(Dag(("1+2", "3-4", "a+5"), "cab", "c"))  # of three pairs, c uses a
    >>> rule_auroc([problem], nearness), rule_auroc([problem], shared_name)
    (0.0, 1.0)
    """
    scores, truth = [], []
    for problem in problems:
        steps = problem.steps
        for later, earlier, used in problem.pairs:
            scores.append(rule(steps[earlier], steps[later], later - earlier))
            truth.append(used)
    return auroc(np.array(scores, float), np.array(truth))


def balance(family: str, length: int | None, *, n: int = 2000, terse: bool = False, seed: int = 0) -> dict[str, float]:
    """AUROC of every rule on `n` random problems of one length, or of all trained lengths of four or more.

    Args:
        family: A family whose problems have steps that use steps.
        length: The length of the problems; None mixes the lengths as in training.
        n: The number of problems.
        terse: Whether the wording is terse.
        seed: The seed of the problems.

    Returns:
        The AUROC of each rule in BASELINES; 0.5 is chance.
    """
    rng = Random(f"balance {family} {length} {seed}")
    lengths = [number for number in FAMILIES[family].lengths if number >= 4] if length is None else [length]
    problems = [make(family, rng, length=rng.choice(lengths), wording=Wording(terse=terse)) for _ in range(n)]
    return {name: rule_auroc(problems, rule) for name, rule in BASELINES.items()}


def table(families: tuple[str, ...], n: int) -> str:
    """A Markdown table: a row for each family, wording and length of four or more, and one for all of these lengths."""
    lines = [f"| family | wording | steps | {' | '.join(BASELINES)} |", f"|---|---|---|{'---|' * len(BASELINES)}"]
    for family in families:
        for terse in (False, True):
            for length in (*range(4, FAMILIES[family].longest + 1), None):
                areas = balance(family, length, n=n, terse=terse).values()
                cells = " | ".join(f"{area:.3f}" for area in areas)
                lines.append(f"| {family} | {'terse' if terse else 'spoken'} | {length or 'all'} | {cells} |")
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(prog="python -m workbench.pocket.balance", description=__doc__)
    parser.add_argument("families", nargs="*", default=DAGS, help=f"families (default: {' '.join(DAGS)})")
    parser.add_argument("-n", type=int, default=2000, help="problems per row (default: 2000)")
    args = parser.parse_args(argv)
    sys.stdout.write(table(tuple(args.families), args.n) + "\n")


if __name__ == "__main__":
    main()
