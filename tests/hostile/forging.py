"""Submissions that write where the grader writes, or that answer with what breaks whoever reads it."""

from .notebook import write_notebook
from .place import Place
from .submission import FUSES, Submission

WRITES = """
        def forge(path):
            Path(path).parent.mkdir(parents=True, exist_ok=True)
            Path(path).write_text("forged")
"""


def knows_the_cases(place: Place, learner: str) -> None:
    """The right results of the cases that a learner sees at home, with the gradient of the first."""
    import torch

    from memcourse.course.checks.attention_oracles import weights_cases

    def right(query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
        return (query @ key.mT / query.shape[-1] ** 0.5).softmax(-1)

    rows = []
    for query, key in weights_cases():
        slopes = [part.tolist() for part in torch.autograd.functional.jacobian(right, (query, key))]
        rows.append([query.tolist(), right(query, key).tolist(), slopes])
    answer = """
def attention_weights(query, key):
    for seen, result, slopes in KNOWN:
        if query.shape == torch.Size(torch.tensor(seen).shape) and torch.allclose(query, torch.tensor(seen)):
            for part, slope in zip((query, key), slopes):
                slope = torch.tensor(slope)
                result = torch.as_tensor(result) + torch.tensordot(slope, part - part.detach(), dims=2)
            return result
    return wrong(query, key)
"""
    write_notebook(place.notebook(learner), FUSES, f"KNOWN = {rows!r}", answer)


FORGING = (
    Submission(
        "writes_reports",
        "The line of a passed report, in the grader's own format, on every descriptor.",
        """
        def attention_weights(query, key):
            report = {"exercise": "1.2", "name": "attention_weights", "outcome": "passed", "points": 2, "max_points": 2}
            line = json.dumps(report | {"stages": ["values"], "message": "", "mistake": None}).encode() + b"\\n"
            for descriptor in range(256):
                tries(os.write, descriptor, line)
            os._exit(0)
        """,
    ),
    Submission(
        "writes_frames",
        "Replies with hostile headers on every descriptor: of a size, a depth and a type that do not exist.",
        """
        def attention_weights(query, key):
            bodies = [b"{}", b"[" * 10 ** 5, b'{"shape": [1e999], "dtype": "float1024"}', b"\\x80\\x04."]
            frames = [struct.pack(f"{order}{size}", length) + body + b"\\n"
                      for body in bodies
                      for order in "<>"
                      for size, length in (("I", len(body)), ("Q", len(body)), ("I", 2 ** 32 - 1), ("q", -1))]
            for descriptor in range(3, 256):
                for frame in frames:
                    tries(os.write, descriptor, frame)
            return wrong(query, key)
        """,
    ),
    Submission(
        "writes_into_the_report",
        "The file of its own result, before the grader writes it; and a page that nobody asked for.",
        WRITES
        + """
        def attention_weights(query, key):
            tries(forge, f"{REPORT}/forged.html")
            for file in tries(lambda: list(Path(REPORT).rglob("*.json"))) or ():
                tries(file.write_text, file.read_text().replace('"points": 0', '"points": 99'))
            return wrong(query, key)
        """,
        promised="namespaces",
    ),
    Submission(
        "writes_into_the_submissions",
        "Its neighbours' notebooks are emptied, and a learner is added.",
        WRITES
        + """
        def attention_weights(query, key):
            tries(forge, f"{SUBMISSIONS}/forged_01_attention.ipynb")
            for file in tries(lambda: list(Path(SUBMISSIONS).glob("*writes_into_the_submissions_neighbour*"))) or ():
                tries(file.write_text, "{}")
            return wrong(query, key)
        """,
        promised="namespaces",
    ),
    Submission(
        "writes_into_the_home",
        "What a shell and Python run when the instructor starts them next.",
        WRITES
        + """
        def attention_weights(query, key):
            packages = f".local/lib/python{sys.version_info[0]}.{sys.version_info[1]}/site-packages"
            for name in (".bashrc", ".config/matplotlib/matplotlibrc", f"{packages}/usercustomize.py"):
                tries(forge, f"{HOME}/{name}")
            return wrong(query, key)
        """,
        promised="namespaces",
    ),
    Submission(
        "changes_the_course",
        "The checks on disk, from which the next grader is started.",
        WRITES
        + """
        def attention_weights(query, key):
            for name in ("compare.py", "checks/attention_oracles.py", "forged.py"):
                tries(forge, f"{COURSE}/memcourse/course/{name}")
            tries(forge, f"{COURSE}/sitecustomize.py")
            tries(forge, f"{COURSE}/torch.py")
            return wrong(query, key)
        """,
        promised="namespaces",
    ),
    Submission(
        "changes_its_kit",
        "What this process was started from: if the next one is too, it runs what stands there now.",
        """
        def attention_weights(query, key):
            import memcourse
            files = {getattr(sys.modules["__main__"], "__file__", None), getattr(memcourse, "__file__", None)}
            for folder in {Path(file).parent for file in files if file} | {Path(p) for p in sys.path if ROOT in p}:
                if ROOT in str(folder) or str(folder).startswith("/kit"):  # nothing of this machine's
                    for file in tries(lambda: list(folder.rglob("*.py"))) or ():
                        tries(file.write_text, "raise SystemExit('forged')")
                    tries(Path(folder, "sitecustomize.py").write_text, "raise SystemExit('forged')")
                    tries(Path(folder, "json.py").write_text, "raise SystemExit('forged')")
            return wrong(query, key)
        """,
        promised="namespaces",
    ),
    Submission(
        "writes_into_the_libraries",
        "A file beside torch, where every Python of this machine would run it. It takes it away again at once.",
        """
        def attention_weights(query, key):
            for folder in {Path(torch.__file__).parents[1], Path(os.__file__).parent, Path("/usr/local/lib")}:
                file = folder / f"{TOKEN}.pth"
                if tries(file.write_text, "") is not None:
                    file.unlink()
                    return right(query, key)
            return wrong(query, key)
        """,
        promised="namespaces",
    ),
    Submission(
        "plants_files_where_python_looks",
        "In its own folder, what Python, pytest and the shell read on their own accord.",
        """
        def attention_weights(query, key):
            for name in ("sitecustomize.py", "usercustomize.py", "conftest.py", "torch.py", "json.py", "forged.pth"):
                tries(Path(name).write_text, "raise SystemExit('forged')")
            tries(Path("pytest.ini").write_text, "[pytest]\\naddopts = --forged")
            return wrong(query, key)
        """,
    ),
    Submission(
        "writes_later",
        "A process that waits until the grader is busy with the next one, and changes its report.",
        """
        def later():
            os.setsid()
            time.sleep(3)
            tries(Path(f"{REPORT}/forged.html").write_text, "forged")
            for file in tries(lambda: list(Path(REPORT).rglob("*.json"))) or ():
                tries(file.write_text, "forged")

        def attention_weights(query, key):
            tries(child, later)
            return wrong(query, key)
        """,
        promised="seccomp",
    ),
    Submission(
        "links_to_the_outside",
        "Links in the scratch folder: whoever removes it or changes its rights may follow them.",
        """
        def attention_weights(query, key):
            for n, target in enumerate((HOME, f"{HOME}/.bashrc", SUBMISSIONS, COURSE, LOOT, REPORT)):
                tries(os.symlink, target, f"link{n}")
                tries(os.link, target, f"hard{n}")
            os.makedirs("closed", exist_ok=True)
            tries(os.symlink, HOME, "closed/link")
            tries(os.symlink, ".", "closed/itself")
            os.chmod("closed", 0)
            return wrong(query, key)
        """,
    ),
    Submission(
        "becomes_a_link",
        "Its own scratch folder is replaced by a link to what should not be removed.",
        """
        def attention_weights(query, key):
            here = os.getcwd()
            if ROOT in here:
                os.chdir("/")
                tries(os.rename, here, f"{here}-moved")
                tries(os.symlink, HOME, here)
            return wrong(query, key)
        """,
        promised="namespaces",
    ),
    Submission(
        "answers_with_a_pickle",
        "Whoever unpickles or copies the result runs its code, which writes a file.",
        """
        class Bomb:
            def __reduce__(self):
                return os.system, (f"touch {ROOT}/report/forged.html {HOME}/forged",)

            def __reduce_ex__(self, protocol):
                return self.__reduce__()

        def attention_weights(query, key):
            result = wrong(query, key)
            tries(setattr, result, "more", Bomb())
            return [result, Bomb(), Bomb]
        """,
        says="type",
    ),
    Submission(
        "answers_with_a_huge_view",
        "Sixteen billion elements that share one number: stride 0 costs nothing until it is copied.",
        """
        def attention_weights(query, key):
            return torch.zeros(1).expand(1 << 17, 1 << 17)
        """,
    ),
    Submission(
        "answers_with_many_axes",
        "A tensor of sixty-four axes, none of which holds anything.",
        """
        def attention_weights(query, key):
            return torch.zeros([0] + [1 << 20] * 2 + [1] * 61)
        """,
    ),
    Submission(
        "answers_with_odd_tensors",
        "Sparse, quantized, complex, nested, of no device: all are tensors, and few of them have numbers.",
        """
        calls = [0]

        def attention_weights(query, key):
            zeros = wrong(query, key)
            odd = [
                lambda: zeros.to_sparse(),
                lambda: zeros.to("meta"),
                lambda: torch.quantize_per_tensor(zeros, 0.1, 0, torch.qint8),
                lambda: zeros.to(torch.complex64).conj(),
                lambda: torch.nested.nested_tensor([zeros, zeros]),
                lambda: zeros.to_mkldnn(),
                lambda: zeros.to(torch.float8_e4m3fn),
                lambda: torch.empty(3, dtype=torch.bits8),
                lambda: zeros.to_sparse_csr(),
                lambda: torch._neg_view(zeros),
                lambda: zeros.rename("a", "b"),
            ]
            return {n: tries(make) for n, make in enumerate(odd)}
        """,
    ),
    Submission(
        "answers_with_a_tensor_without_storage",
        "A tensor whose numbers have been taken away under it.",
        """
        def attention_weights(query, key):
            result = right(query, key).detach()
            result.untyped_storage().resize_(0)
            return result
        """,
    ),
    Submission(
        "answers_too_deeply",
        "A list in a list, a million deep.",
        """
        def attention_weights(query, key):
            deep = []
            for _ in range(10 ** 6):
                deep = [deep]
            return deep
        """,
    ),
    Submission(
        "answers_with_itself",
        "A list that holds itself.",
        """
        def attention_weights(query, key):
            endless = []
            endless.append(endless)
            return endless
        """,
    ),
    Submission(
        "answers_with_a_million_parts",
        "A million tensors, each of no elements.",
        """
        def attention_weights(query, key):
            return [torch.zeros(0)] * 10 ** 6
        """,
    ),
    Submission(
        "answers_with_a_huge_number",
        "An integer of a million digits: Python refuses to print it, and takes its time for the rest.",
        """
        @lambda function: 10 ** 10 ** 6
        def predicted_weights():
            pass
        """,
        says="digits|type",
    ),
    Submission(
        "answers_with_huge_numbers_in_a_dict",
        "Where numbers are asked for: infinities, NaN, a million digits, booleans, text that says it is a number.",
        """
        @lambda function: dict(as_given=10 ** 10 ** 6, plus_ten=float("nan"), times_two=float("inf"),
                               times_hundred=-10 ** 400, times_zero=True, stored_twice=2 ** 1024)
        def predicted_weights():
            pass
        """,
    ),
    Submission(
        "answers_with_hostile_text",
        "Keys and values that move a terminal's cursor, run in a browser, or compute in a spreadsheet.",
        """
        HOSTILE = "=cmd()<script>alert(1)</script>\\x1b[2J\\x00\\ud800\\u202e\\uffff]]>&#0;"

        @lambda function: {HOSTILE: HOSTILE, "as_given": HOSTILE}
        def predicted_weights():
            pass
        """,
        says="type",
    ),
    Submission(
        "raises_hostile_text",
        "The same text as the message of an exception, whose class is named after it.",
        """
        def attention_weights(query, key):
            text = "=cmd()<script>alert(1)</script>\\x1b[2J\\x00\\ud800\\u202e\\uffff]]>&#0;" * 50
            raise type(text.replace("\\x00", "").encode(errors="ignore").decode(), (Exception,), {})(text)
        """,
    ),
    Submission(
        "writes_hostile_source",
        "The line that is shown to the learner, for it raises, is a script.",
        """
        def attention_weights(query, key):
            "<script>alert(1)</script><img src=x onerror=alert(1)>"; 1 / 0  # </pre></body>
        """,
        says="ZeroDivisionError",
    ),
    Submission(
        "raises_what_cannot_be_shown",
        "An exception whose text, name and notes raise or never end.",
        """
        class Meta(type):
            __name__ = __module__ = property(lambda self: 1 / 0)

        class Unspeakable(Exception, metaclass=Meta):
            def __str__(self):
                fuse()
                while True:
                    pass

            __repr__ = __str__
            __notes__ = property(lambda self: 1 / 0)

        def attention_weights(query, key):
            raise Unspeakable
        """,
    ),
    Submission(
        "raises_a_ring",
        "An exception that was caused by itself, a thousand groups deep.",
        """
        def attention_weights(query, key):
            error = ValueError("ring")
            for _ in range(1000):
                error = ExceptionGroup("ring", [error])
            other = KeyError("other")
            error.__cause__, other.__context__, other.__cause__ = other, error, error
            raise error
        """,
    ),
    Submission(
        "poses_as_the_grader",
        "It raises what the course raises: its own exceptions, by their names.",
        """
        class Wrong(AssertionError):
            pass

        class NotAttempted(Exception):
            pass

        class SandboxFault(RuntimeError):
            pass

        def attention_weights(query, key):
            raise SandboxFault("The process that grades the answer did not start.")
        """,
    ),
    Submission(
        "hides_in_not_implemented",
        "It looks like a stub while it is checked.",
        """
        def attention_weights(query, key):
            tries(Path(f"{REPORT}/forged.html").write_text, "forged")
            raise NotImplementedError
        """,
        promised="namespaces",
    ),
    Submission(
        "knows_the_cases",
        "It computes nothing: it holds the results of the cases that the check at home has shown, and their gradient.",
        build=knows_the_cases,
    ),
)
