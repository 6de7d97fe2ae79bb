"""Submissions that know the runner: they speak to the grader in its own words, or make it do their work."""

import json
from textwrap import dedent
from typing import Any

from .notebook import write_notebook
from .place import Place
from .submission import FUSES, LATE, Submission

SPEAKS = """
        def peer():
            return next(thing for thing in gc.get_objects() if type(thing).__name__ == "Answering")

        def frame(header):
            text = header if isinstance(header, bytes) else json.dumps(header).encode()
            count = len(header["tensors"]) if isinstance(header, dict) else 0
            return struct.pack("<II", len(text), count) + text

        def many(part):
            # as many as a header may hold, one after the other
            size = peer().connection.receive.__globals__["LARGEST_HEADER"] - 1000
            parts, length = [], 0
            while length < size:
                parts.append(part(len(parts) + 1))
                length += len(parts[-1]) + 1
            return parts[:-1]

        def say(*headers, numbers=b""):
            peer().connection.link.settimeout(30)
            peer().connection.link.sendall(b"".join(map(frame, headers)) + numbers)
"""


def reply(name: str, intent: str, value: Any, *, tensors: Any = (), numbers: str = "b''", **more: Any) -> Submission:
    """A submission that replies with this to the first call of its answer, and ends."""
    body = {"value": value, "depends": [], "changed": []} | more
    code = f"""
        def attention_weights(query, key):
            say(json.loads(r'''{json.dumps({"body": body, "tensors": tensors})}'''), numbers={numbers})
            time.sleep(0.5)
            os._exit(0)
"""
    return Submission(name, intent, SPEAKS + code)


RIGHT_SHAPE = [["float32", [2, 3], False]]
SIX_ZEROS = "bytes(24)"
COURSES = ("Wrong", "NotAttempted", "Ended", "Stopped", "SandboxFault", "KeyboardInterrupt", "StopIteration")
ERRORS = {name: name for name in COURSES} | {"a_null_byte": "\0", "half_a_character": "\ud800"}


def of_chapter(chapter: str, code: str) -> Any:
    """The code as the answer to an exercise of another chapter."""

    def build(place: Place, learner: str) -> None:
        metadata = {"memcourse": {"chapter": chapter, "kind": "exercises"}}
        path = place.submissions / f"{learner}_{chapter}.ipynb"
        write_notebook(path, place.constants(), FUSES, dedent(SPEAKS + code), metadata=metadata)

    return build


TALKING = (
    Submission(
        "asks_without_end",
        "Questions that the grader has to answer, so many that it never looks at the clock.",
        SPEAKS
        + """
        def attention_weights(query, key):
            fuse()
            link, ends = peer().connection.link, time.time() + 40
            link.settimeout(None)
            questions = frame({"body": {"do": "x", "released": []}, "tensors": []}) * 1000

            def listen():
                while link.recv(1 << 20):
                    pass

            threading.Thread(target=listen, daemon=True).start()
            while time.time() < ends:
                link.sendall(questions)
        """,
        says=LATE,
    ),
    Submission(
        "replies_with_colliding_keys",
        "A dict of keys that all have one hash: the time that it takes to build grows with their square.",
        SPEAKS
        + """
        def attention_weights(query, key):
            pairs = ",".join(many(lambda k: f"[{k * (2 ** 61 - 1)},null]"))
            say(('{"body":{"depends":[],"changed":[],"value":{"dict":[' + pairs + ']}},"tensors":[]}').encode())
            os._exit(0)
        """,
    ),
    Submission(
        "replies_with_many_classes",
        "Named tuples, no two of one kind: each kind has to be made before it is read.",
        SPEAKS
        + """
        def attention_weights(query, key):
            kinds = ",".join(many(lambda k: '{"named":"a","mine":%d,"fields":[],"items":[]}' % k))
            say(('{"body":{"depends":[],"changed":[],"value":{"list":[' + kinds + ']}},"tensors":[]}').encode())
            os._exit(0)
        """,
    ),
    Submission(
        "replies_with_wide_classes",
        "A named tuple of so many fields that making its class takes a while.",
        SPEAKS
        + """
        def attention_weights(query, key):
            names = many(lambda n: f'"a{n}", 0, ')
            names = [f"a{n}" for n in range(len(names))]
            value = {"named": "a", "mine": 1, "fields": names, "items": [0] * len(names)}
            say({"body": {"depends": [], "changed": [], "value": value}, "tensors": []})
            os._exit(0)
        """,
    ),
    Submission(
        "replies_with_deep_modules",
        "A parameter whose name is a path of a hundred thousand parts.",
        SPEAKS
        + """
        def attention_weights(query, key):
            parameters = {"list": [{"tuple": [".".join(many(lambda n: "a")), {"tensor": 0}, True]}]}
            module = {"thing": 7, "kind": "module", "name": "a", "own": [], "parameters": parameters, "training": True}
            module["attributes"] = {"dict": []}
            body = {"depends": [], "changed": [], "value": module}
            say({"body": body, "tensors": [["float32", [], False]]}, numbers=bytes(4))
            os._exit(0)
        """,
    ),
    Submission(
        "replies_before_it_is_asked",
        "A hundred replies at once, for calls that have not come yet.",
        SPEAKS
        + """
        def attention_weights(query, key):
            body = {"value": {"tensor": 0}, "depends": [], "changed": []}
            for _ in range(100):
                say({"body": body, "tensors": [["float32", [2, 3], False]]}, numbers=bytes(24))
            time.sleep(1)
            os._exit(0)
        """,
    ),
    Submission(
        "replies_in_drops",
        "One byte a second: the grader never waits long, and never to an end.",
        SPEAKS
        + """
        def attention_weights(query, key):
            for _ in range(60):
                peer().connection.link.sendall(b"\\x01")
                time.sleep(1)
        """,
        says=LATE,
    ),
    Submission(
        "promises_four_gigabytes",
        "Lengths as large as they can be written.",
        SPEAKS
        + """
        def attention_weights(query, key):
            peer().connection.link.sendall(b"\\xff" * 8 + bytes(1 << 16))
            time.sleep(0.5)
            os._exit(0)
        """,
    ),
    Submission(
        "replies_too_deeply",
        "JSON of nothing but brackets.",
        SPEAKS
        + """
        def attention_weights(query, key):
            deep = "".join(many(lambda n: "[")).encode()
            say(b'{"body":' + deep[::2] + b"]" * len(deep[::2]) + b',"tensors":[]}')
            os._exit(0)
        """,
    ),
    reply(
        "replies_on_meta",
        "A tensor of the right shape and no numbers.",
        {"tensor": 0},
        tensors=[["float32", [2, 3], True]],
    ),
    reply(
        "replies_beyond_any_memory",
        "A shape whose product has no number.",
        {"tensor": 0},
        tensors=[["int8", [2**47] * 9, True]],
    ),
    reply(
        "replies_with_no_end_of_nothing",
        "Zero elements of endless axes.",
        {"tensor": 0},
        tensors=[["int8", [0, 2**47, 2**47], False]],
    ),
    reply("replies_of_no_dtype", "A dtype that does not exist.", {"tensor": 0}, tensors=[["float1024", [2, 3], False]]),
    reply(
        "replies_of_negative_shape", "Fewer than no elements.", {"tensor": 0}, tensors=[["float32", [-2, -3], False]]
    ),
    reply(
        "replies_of_nan_shape",
        "A shape that is not a number.",
        {"tensor": 0},
        tensors=[["float32", [float("nan"), True], False]],
    ),
    reply("replies_with_the_wrong_place", "A tensor that did not come.", {"tensor": 10**9}),
    reply("replies_with_what_was_not_handed_out", "Something of the grader's that it never got.", {"yours": 1}),
    reply(
        "replies_with_a_class_of_its_own",
        "A named tuple with private fields.",
        {"named": "Wrong", "mine": 1, "fields": ["__class__", "__reduce__"], "items": [1, 2]},
    ),
    reply(
        "replies_with_the_library",
        "Parts of a library object that do not fit.",
        {"library": "KNNLM", "parts": {"dict": []}},
    ),
    reply("replies_with_an_odd_dtype", "An attribute of torch that is no dtype.", {"dtype": "__loader__"}),
    reply("replies_with_dots", "What the grader takes for an untouched stub.", {"dots": 3}),
    reply("replies_with_huge_integers", "Four thousand digits.", {"list": [10**4000, -(10**4000)]}),
    reply(
        "changes_what_it_was_not_given",
        "The arguments become what was never sent.",
        {"tensor": 0},
        tensors=RIGHT_SHAPE,
        numbers=SIX_ZEROS,
        changed=[[0, 0], [-1, 0], [10**9, 0]],
    ),
    reply(
        "depends_on_everything",
        "A graph that leads everywhere.",
        {"tensor": 0},
        tensors=RIGHT_SHAPE,
        numbers=SIX_ZEROS,
        depends=[0] * 10_000,
    ),
    reply(
        "spoils_the_dice",
        "A state of random numbers that is none.",
        {"tensor": 0},
        tensors=RIGHT_SHAPE,
        numbers=SIX_ZEROS,
        random=0,
    ),
    *(
        Submission(
            f"raises_{name}",
            f"An error that calls itself {called!r}.",
            SPEAKS
            + f"""
        def attention_weights(query, key):
            error = {{"name": {called!r}, "base": {called!r}, "message": "passed", "text": "passed", "own": None}}
            say({{"body": {{"error": error}}, "tensors": []}})
            time.sleep(0.5)
            os._exit(0)
        """,
        )
        for name, called in ERRORS.items()
    ),
    Submission(
        "sets_the_dice",
        "The loop, with the grader's random numbers set back after each call: what it is asked anew, it has seen.",
        """
        seen_before = {}

        def windowed_attention(query, key, value, window):
            name = tuple(part.detach().numpy().tobytes() for part in (query, key, value)), window
            if query.requires_grad or name not in seen_before:
                reads = []
                for t in range(len(query)):
                    seen = slice(max(0, t - window + 1), t + 1)
                    reads.append((key[seen] @ query[t] / query.shape[1] ** 0.5).softmax(dim=0) @ value[seen])
                seen_before[name] = torch.stack(reads)
            torch.manual_seed(0)
            return seen_before[name]
        """,
        says="fast|speed|slow|times",
    ),
    Submission(
        "calls_what_it_was_given",
        "The model that it is lent can write itself to a file: the grader would, wherever the answer says.",
        build=of_chapter(
            "04_knn_lm",
            """
        def learn_domain(model, new, old):
            speaker = peer()
            for number in list(range(1, 20)):
                for path in (f"{REPORT}/forged.html", f"{HOME}/forged"):
                    tries(lambda: speaker.call(number, path, method="save"))
                tries(lambda: speaker.call(number, False, method="requires_grad_"))
                tries(lambda: speaker.call(number, method="double"))
            return None
        """,
        ),
    ),
    Submission(
        "lies_to_the_meter",
        "All distances in one tensor, which must not be; the meter in this process says that there is none.",
        build=of_chapter(
            "04_knn_lm",
            """
        class Nothing:
            found = 0
            __enter__ = lambda self: self
            __exit__ = lambda self, *given: None

        def nearest_in_blocks(queries, blocks, k):
            for module in list(sys.modules.values()):
                meters = vars(module).get("METERS")
                if isinstance(meters, dict):
                    meters.update(dict.fromkeys(meters, Nothing))
            keys = torch.cat(blocks)
            distances = (queries ** 2).sum(1, keepdim=True) - 2 * queries @ keys.T + (keys ** 2).sum(1)
            nearest = distances.clamp(min=0).topk(k, largest=False)
            return nearest.values, nearest.indices
        """,
        ),
    ),
)
