"""dnc_lib.exercises: an answer is right, wrong with a hint, or stumbles; none of them stops the chapter."""

from dnc_lib.exercises import attempt


def check_double(answer):
    for number, hint in ((2, "two times two is four"), (-1, "what about numbers below zero?")):
        if answer(number) != 2 * number:
            raise AssertionError(hint)  # what an assert in a notebook raises; pytest would add to its own asserts


def test_a_right_answer():
    assert attempt(check_double, lambda x: 2 * x) == "Correct."


def test_a_wrong_answer_gets_its_hint():
    assert attempt(check_double, lambda x: x * x) == "Not yet: what about numbers below zero?"


def test_a_stub_runs():
    assert attempt(check_double, lambda x: None) == "Not yet: two times two is four"


def test_an_answer_that_stumbles_is_told_how():
    assert attempt(check_double, lambda x: 1 / 0) == "Not yet: ZeroDivisionError: division by zero"


def test_an_answer_of_another_signature():
    assert attempt(check_double, lambda: 1).startswith("Not yet: TypeError: ")
