import json
import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fednano.data.folder import open_folder
from fednano.data.official_scores import folder_scores, iconqa_scores, scienceqa_scores
from fednano.data.scienceqa import Problem, open_scienceqa, read_problems

SHARED = Path(__file__).resolve().parents[3].parent / "shared" / "data"
SCIENCEQA, ICONQA = SHARED / "scienceqa", SHARED / "iconqa" / "iconqa_data"
needs_real_files = pytest.mark.skipif(not SCIENCEQA.is_dir(), reason="no real excerpts beside this checkout")
SUBJECTS = ("natural science", "social science", "language science")


def problem(answer: int, **fields: object) -> Problem:
    whole = {
        "question": "?", "choices": ["x", "y", "z"], "answer": answer, "hint": "", "image": None, "grade": "grade2",
        "subject": "natural science", "topic": "physics", "split": "test",
    }  # fmt: skip
    return Problem.model_validate({**whole, **fields})


def test_missing_predictions_are_wrong_and_no_prompts_and_extra_ones_count_for_nothing() -> None:
    problems = {"1": problem(0, image="image.png"), "2": problem(1, image="image.png"), "3": problem(2)}
    scores = scienceqa_scores(problems, {"1": "A", "3": "The answer is C.", "99": "A"})
    assert (scores["all"].correct, scores["all"].count) == (2, 3)
    assert (scores["IMG prompts"].correct, scores["IMG prompts"].count) == (1, 1)
    assert (scores["IMG"].correct, scores["IMG"].count) == (1, 2)


def test_contexts_overlap_and_grades_part_at_seven() -> None:
    problems = {
        "1": problem(0, image="image.png", hint="look", grade="grade6"),
        "2": problem(0, grade="grade7", subject="social science"),
        "3": problem(0, hint="read", grade="grade12", subject="language science"),
    }
    scores = scienceqa_scores(problems, {"1": "A", "2": "B", "3": "FAILED"})
    counts = {name: (score.correct, score.count) for name, score in scores.items()}
    assert counts == {
        "all": (1, 3), "IMG prompts": (1, 1), "NAT": (1, 1), "SOC": (0, 1), "LAN": (0, 1), "TXT": (1, 2), "IMG": (1, 1),
        "NO": (0, 1), "G1-6": (1, 1), "G7-12": (0, 2),
    }  # fmt: skip


def reference_accuracy(problems: dict[str, Problem], predictions: dict[str, str]) -> float:
    """The rules of the official description once more, written another way: indices instead of letters."""
    right = 0
    for pid, each in problems.items():
        text, chosen = predictions.get(pid, "FAILED").strip(), -1
        if text in tuple("ABCDE"):
            chosen = "ABCDE".index(text)
        elif re.match(r"[A-E]\. ", text):
            chosen = ord(text[0]) - ord("A")
        elif len(found := list(re.finditer(r"The answer is ([A-Z])(?=.)", text))) == 1:
            chosen = ord(found[0].group(1)) - ord("A")
        right += chosen == each.answer and chosen < len(each.choices)
    return right / len(problems)


texts = st.one_of(
    st.sampled_from(["A", "B ", "C. z", "D", "E", "F", "The answer is B.", "The answer is A", "The answer is Z.", ""]),
    st.text(alphabet="ABCDE. Theanswri\n", max_size=30),
)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 2), st.none() | texts), min_size=1, max_size=12))
def test_the_accuracy_is_that_of_the_rules_written_another_way(cases: list[tuple[int, str | None]]) -> None:
    problems = {str(i): problem(answer) for i, (answer, _) in enumerate(cases)}
    predictions = {str(i): text for i, (_, text) in enumerate(cases) if text is not None}
    assert scienceqa_scores(problems, predictions)["all"].accuracy == reference_accuracy(problems, predictions)


@needs_real_files
def test_the_real_scienceqa_test_split_scores_all_right_with_its_own_answers() -> None:
    problems = read_problems(open_scienceqa(SCIENCEQA), "test")
    scores = scienceqa_scores(problems, {pid: "ABCDE"[each.answer] for pid, each in problems.items()})
    assert all(score.correct == score.count for score in scores.values())
    assert scores["NAT"].count + scores["SOC"].count + scores["LAN"].count == scores["all"].count == 50
    assert scores["G1-6"].count + scores["G7-12"].count == 50


@needs_real_files
def test_the_real_iconqa_test_split_is_scored_by_task_in_total_and_by_each_skill() -> None:
    examples = open_folder(ICONQA).read("test")
    right = {each.pid: each.answer for each in examples}
    scores = iconqa_scores(examples, {**right, **dict.fromkeys(list(right)[:25], "no"), "none": "x"})
    assert (scores["all"].correct, scores["all"].count) == (50, 75)
    assert [scores[task].accuracy for task in ("fill_in_blank", "choose_txt", "choose_img")] == [0.0, 1.0, 1.0]
    by_skill = sum(score.count for name, score in scores.items() if name.startswith("skill "))
    assert by_skill == sum(len(each.skills) for each in examples) > 75


@needs_real_files
def test_a_problem_of_iconqa_without_a_prediction_is_wrong() -> None:
    examples = open_folder(ICONQA).read("test")
    assert iconqa_scores(examples, {})["all"].correct == 0


def test_own_examples_are_scored_over_all_and_by_topic(tmp_path: Path) -> None:
    lines = [
        {"id": str(number), "image": None, "question": "?", "answer": "yes", "topic": topic, "split": "test"}
        for number, topic in enumerate(("a", "a", "b", ""))
    ]
    (tmp_path / "examples.jsonl").write_text("\n".join(json.dumps(line) for line in lines))
    scores = folder_scores(open_folder(tmp_path), "test", {"0": "yes", "1": "Yes", "3": "yes", "9": "yes"})
    counts = {name: (score.correct, score.count) for name, score in scores.items()}
    assert counts == {"all": (2, 4), "topic a": (1, 2), "topic b": (0, 1)}


@needs_real_files
def test_a_folder_is_scored_by_the_rules_of_its_set() -> None:
    assert {"IMG prompts", "NAT", "G1-6"} <= set(folder_scores(open_folder(SCIENCEQA), "test", {}) | {"IMG prompts": 0})
    assert {"choose_img", "skill counting"} <= set(folder_scores(open_folder(ICONQA), "test", {}))
