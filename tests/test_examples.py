"""The drawing of a task's example holds every token, and what should be said stands beneath the right one."""

import matplotlib

from memcourse.course.examples import examples
from memcourse.course.figures import use_style

ROWS = {
    "recall": [("k1", ""), ("v3", ""), ("k1", "v3")],
    "passkey": [("MARK", ""), ("7", ""), ("f2", ""), ("QUERY", "7")],
}


def test_every_token_has_a_box_and_every_answer_stands_beneath_its_token() -> None:
    with matplotlib.rc_context():
        use_style()  # titles stand on the left in the course's figures
        (ax,) = examples(ROWS, title="What is read").axes
    assert ax.get_title(loc="left") == "What is read"
    assert len(ax.patches) == 7
    texts = [(text.get_text(), *text.get_position()) for text in ax.texts]
    assert [word for word, _, _ in texts] == [
        "recall",
        "k1",
        "v3",
        "k1",
        "v3",
        "passkey",
        "MARK",
        "7",
        "f2",
        "QUERY",
        "7",
    ]
    (_, query_x, query_y), (_, said_x, said_y) = texts[-2:]
    assert said_x == query_x and query_y < said_y < 2  # the axis points down
