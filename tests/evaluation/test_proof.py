"""A proof says which rows are played, and errors name its keys."""

from typing import Any

import pytest

from vitar_jax.errors import ConfigError
from vitar_jax.evaluation.proof import Proof, ProofRow
from vitar_jax.quickstart import table
from vitar_jax.runtime.config import to_dataclass

ROWS: dict[str, Any] = {"plain": {"label": "plain", "stage": "sft"}, "guess": {"label": "guess", "baseline": "mine.py:guess"}}


def proof(**changes: Any) -> Proof:
    values = {"title": "A proof", "rows": ROWS, "order": ("plain", "guess"), "episode": "plain"} | changes
    return to_dataclass(Proof, values, "config.proof")


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"order": ("plain",)}, "order: got plain, expected each of plain, guess once"),
        ({"order": ("plain", "plain", "guess")}, "order: got plain, plain, guess"),
        ({"episode": "guess"}, "episode: got 'guess', expected a played row"),
        ({"compared": (("plain", "plane"),)}, "compared: got 'plane', expected a played row"),
        ({"compared": (("guess", "plain"),)}, "compared: got 'guess', expected a played row"),
        ({"conclusion_file": "../page.md"}, "conclusion_file: got '../page.md', expected a name"),
        ({"rows": {**ROWS, "guess": {"label": "guess"}}}, "'guess' needs exactly one of stage and baseline"),
        ({"rows": {**ROWS, "plain": {**ROWS["plain"], "look": "up"}}}, "look: 'up' is not one of"),
        ({"rows": {**ROWS, "plain": {**ROWS["plain"], "control": "blanc"}}}, "'plain': unknown intervention 'blanc'"),
        (
            {"rows": {**ROWS, "plain": {**ROWS["plain"], "control": "erase_masks", "of": "guess"}}},
            "rows.plain.of: 'guess' is not an earlier row of config.proof.order",
        ),
    ],
)
def test_errors_name_the_key(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        proof(**changes)


def test_rows_are_of_trained_stages() -> None:
    proof().check_stages(("warmup", "sft"))
    with pytest.raises(ConfigError, match="rows.plain.stage: 'sft' is not in config.schedule"):
        proof().check_stages(("grpo",))
    with pytest.raises(ConfigError, match="config.proof.rewards: 'grpo' is not in config.schedule"):
        proof(rewards="grpo").check_stages(("sft",))


def test_a_row_is_a_variant_of_its_stage() -> None:
    row = ProofRow("random", stage="grpo", look="random", thought="data_prep.phantom.proof:spot")
    assert row.variant().settings == {"look": "random"}
    assert row.variant().thought is not ProofRow("plain", stage="grpo").variant().thought


def test_a_row_on_the_masks_of_another_leaves_out_samples_without_any() -> None:
    rows = {**ROWS, "erased": {"label": "without its evidence", "stage": "sft", "control": "erase_masks", "of": "plain"}}
    row = proof(rows=rows, order=("plain", "erased", "guess")).rows["erased"]
    assert row.variant().settings == {"control": "erase_masks", "of": "plain"} and row.variant().skip_missing
    assert not proof().rows["plain"].variant().skip_missing  # others are errors


def test_a_conclusion_is_a_function_of_the_rows(tmp_path) -> None:
    mine = tmp_path / "mine.py"
    mine.write_text("def best(rows):\n    return max(rows, key=lambda name: rows[name]['accuracy'])\n")
    rows = {"plain": {"accuracy": 0.2}, "guess": {"accuracy": 0.5}}
    assert proof(conclusion=f"{mine}:best").conclude(rows) == "guess"
    assert proof().conclude(rows) == ""
    with pytest.raises(ConfigError, match="has no 'bets', did you mean best"):
        proof(conclusion=f"{mine}:bets").conclude(rows)


def test_the_printed_table_has_the_measures_of_each_row() -> None:
    rows: dict[str, Any] = {"plain": {"accuracy": 0.5, "interval": None, "n": 4, "r_lq": 0.905, "r_sq": None}}
    lines = table(proof(measures=("r_lq", "r_sq")), rows | {"guess": {"accuracy": 0.25}}).splitlines()
    assert [line.split() for line in lines] == [["plain", "50.0", "%", "R-LQ", "90.5", "%"], ["guess", "25.0", "%"]]
