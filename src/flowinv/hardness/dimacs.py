"""Formulas in conjunctive normal form, with at most three literals a clause, and the DIMACS text they come in."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Formula:
    """An AND of ORs: ``clauses`` of 1 to 3 literals, +i for variable i = 1..``variables``, -i for its negation."""

    variables: int
    clauses: tuple[tuple[int, ...], ...]

    def __post_init__(self) -> None:
        if self.variables < 1 or not self.clauses:
            raise ValueError(f"a formula needs variables and clauses, got {self.variables} and {len(self.clauses)}")
        for number, clause in enumerate(self.clauses, 1):
            if not 1 <= len(clause) <= 3:
                hint = "it can never be true" if not clause else "bring the formula to 3-CNF first"
                raise ValueError(f"clause {number} has {len(clause)} literals, expected 1 to 3: {hint}")
            for literal in clause:
                if not 1 <= abs(literal) <= self.variables:
                    raise ValueError(f"clause {number} has literal {literal}, but variables are 1..{self.variables}")

    @property
    def unused(self) -> list[int]:
        """The variables that occur in no clause."""
        used = {abs(literal) for clause in self.clauses for literal in clause}
        return [i for i in range(1, self.variables + 1) if i not in used]

    def satisfied_by(self, assignment: Tensor) -> Tensor:
        """Whether assignments of +1 (true) and -1 (false), (..., variables), satisfy the formula: bool (...)."""
        if assignment.shape[-1:] != (self.variables,):
            raise ValueError(f"an assignment has shape (..., {self.variables}), got {tuple(assignment.shape)}")
        true = assignment > 0
        result = true.new_ones(true.shape[:-1])
        for clause in self.clauses:
            holds = torch.zeros_like(result)
            for literal in clause:
                holds |= true[..., abs(literal) - 1] == (literal > 0)
            result &= holds
        return result

    def solutions(self) -> Tensor:
        """Every satisfying assignment, (n, variables) of +1 and -1 in float64, by trying all 2^variables."""
        if self.variables > 24:
            raise ValueError(f"trying all assignments stops at 24 variables, got {self.variables}: use a SAT solver")
        found, block = [], 1 << 16
        bits = torch.arange(self.variables)
        for start in range(0, 1 << self.variables, block):
            number = torch.arange(start, min(start + block, 1 << self.variables))
            assignments = 2 * (number[:, None] >> bits & 1) - 1
            found.append(assignments[self.satisfied_by(assignments)])
        return torch.cat(found).double()

    def to_dimacs(self) -> str:
        """The formula as DIMACS CNF text."""
        lines = [f"p cnf {self.variables} {len(self.clauses)}"]
        return "\n".join(lines + [" ".join(map(str, [*clause, 0])) for clause in self.clauses]) + "\n"


def parse_dimacs(text: str) -> Formula:
    """The formula of a DIMACS CNF text: ``c`` comments, ``p cnf variables clauses``, clauses ended by 0, a ``%`` ends it all.

    A literal that a clause repeats is taken once. Raises ValueError with the line of what is wrong.
    """
    header: tuple[int, int] | None = None
    clauses: list[tuple[int, ...]] = []
    clause: list[int] = []
    for number, line in enumerate(text.splitlines(), 1):
        words = line.split()
        if not words or words[0].startswith("c"):
            continue
        if words[0].startswith("%"):  # SATLIB's files end in a line "%" and a line "0"
            break
        if words[0] == "p":
            header = _header(words, number, header)
            continue
        if header is None:
            raise ValueError(
                f"line {number}: expected 'p cnf variables clauses' before the clauses, got {line.strip()!r}"
            )
        for literal in _integers(words, number):
            if literal == 0:
                if not clause:
                    raise ValueError(f"line {number}: an empty clause, which can never be true")
                clauses.append(tuple(dict.fromkeys(clause)))
                clause = []
            elif abs(literal) > header[0]:
                raise ValueError(f"line {number}: literal {literal}, but the header tells of {header[0]} variables")
            else:
                clause.append(literal)
    if header is None:
        raise ValueError("no line 'p cnf variables clauses': this is not a DIMACS CNF text")
    if clause:
        raise ValueError(f"the last clause, {' '.join(map(str, clause))}, is not ended by 0")
    if len(clauses) != header[1]:
        raise ValueError(f"the header tells of {header[1]} clauses, the text has {len(clauses)}")
    return Formula(header[0], tuple(clauses))


def _header(words: Sequence[str], number: int, before: tuple[int, int] | None) -> tuple[int, int]:
    if before is not None:
        raise ValueError(f"line {number}: a second header")
    if len(words) != 4 or words[1] != "cnf" or not all(w.isdecimal() for w in words[2:]):
        raise ValueError(f"line {number}: expected 'p cnf variables clauses', got {' '.join(words)!r}")
    return int(words[2]), int(words[3])


def _integers(words: Sequence[str], number: int) -> list[int]:
    try:
        return [int(word) for word in words]
    except ValueError:
        raise ValueError(f"line {number}: expected whole numbers, got {' '.join(words)!r}") from None


def random_formula(variables: int, clauses: int, generator: torch.Generator) -> Formula:
    """Uniform random 3-SAT as SATLIB's uf families: each clause of three distinct variables with random signs.

    No clause comes twice; nothing makes the formula satisfiable.
    """
    if variables < 3:
        raise ValueError(f"clauses of three distinct variables need at least 3 variables, got {variables}")
    found: dict[tuple[int, ...], None] = {}
    limit = 8 * variables * (variables - 1) * (variables - 2) // 6
    if clauses > limit:
        raise ValueError(f"{variables} variables make {limit} different clauses, got {clauses} to find")
    while len(found) < clauses:
        chosen = sorted(torch.randperm(variables, generator=generator)[:3].tolist())
        signs = (2 * torch.randint(2, (3,), generator=generator) - 1).tolist()
        found[tuple(s * (v + 1) for s, v in zip(signs, chosen, strict=True))] = None
    return Formula(variables, tuple(found))
