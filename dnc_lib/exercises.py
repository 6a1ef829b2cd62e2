"""Feedback on an exercise: run its check on an answer and say what came of it."""

from collections.abc import Callable


def attempt(check: Callable[[Callable], None], answer: Callable) -> str:
    """Run ``check(answer)`` and put the outcome in words.

    Args:
        check: raises ``AssertionError`` with a hint where the answer is wrong.
        answer: the reader's function.

    Returns:
        ``"Correct."`` or ``"Not yet: ..."`` with the check's hint, or the error that the answer raised.
    """
    try:
        check(answer)
    except AssertionError as error:
        return f"Not yet: {error}"
    except Exception as error:  # a stub's TypeError is an answer too, not a crash of the chapter
        return f"Not yet: {type(error).__name__}: {error}"
    return "Correct."
