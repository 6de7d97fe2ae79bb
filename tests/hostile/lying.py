"""Submissions that answer wrongly and lie about it: patched libraries, a patched grader, objects that are not what they
say, answers that know when they are watched."""

from .submission import WRONG, Submission

LYING = (
    Submission(
        "patches_comparisons",
        "Every comparison of torch and NumPy says yes.",
        """
        def patched(function):
            yes = lambda *given, **named: True
            torch.allclose = torch.equal = torch.Tensor.equal = torch.Tensor.allclose = yes
            np.allclose = np.isclose = np.array_equal = np.testing.assert_allclose = np.testing.assert_equal = yes
            np.abs = lambda x: np.zeros(np.shape(x))
            np.argwhere = np.flatnonzero = lambda x: np.zeros((0, np.ndim(x)), int)
            torch.Tensor.__eq__ = torch.Tensor.__le__ = lambda a, b: torch.ones(a.shape, dtype=torch.bool)
            torch.Tensor.__ne__ = torch.Tensor.__gt__ = lambda a, b: torch.zeros(a.shape, dtype=torch.bool)
            torch.Tensor.__hash__ = object.__hash__
            return function

        @patched
        def attention_weights(query, key):
            return wrong(query, key)
        """,
        says=WRONG,
    ),
    Submission(
        "patches_builtins",
        "isinstance, all, any, abs, len, max, print and __import__ belong to the answer.",
        """
        import builtins

        def patched(function):
            builtins.isinstance = lambda thing, kind: True
            builtins.all = lambda things: True
            builtins.any = lambda things: False
            builtins.abs = lambda number: 0
            builtins.len = lambda things: 0
            builtins.max = builtins.min = lambda *given, **named: 0
            builtins.print = builtins.repr = lambda *given, **named: "passed"
            builtins.__import__ = lambda *given: sys
            return function

        @patched
        def attention_weights(query, key):
            return wrong(query, key)
        """,
    ),
    Submission(
        "replaces_modules",
        "What is imported later comes from the answer: json, pytest, torch, memcourse.",
        """
        import types

        class Yes(types.ModuleType):
            def __getattr__(self, name):
                return lambda *given, **named: "passed"

        def patched(function):
            for name in list(sys.modules):
                if name.split(".")[0] in ("json", "pytest", "memcourse", "_pytest", "struct", "pickle", "numpy"):
                    sys.modules[name] = Yes(name)
            return function

        @patched
        def attention_weights(query, key):
            return wrong(query, key)
        """,
    ),
    Submission(
        "replaces_the_check",
        "Wherever this process has the course's engine, its comparison and `check` itself, they say yes.",
        """
        def patched(function):
            for name, module in list(sys.modules.items()):
                if name.startswith("memcourse.course"):
                    for part in ("check_type", "check_shape", "check_dtype", "check_finite", "check_values"):
                        if hasattr(module, part):
                            setattr(module, part, lambda *given, **named: None)
                    for part in ("check_gradient", "check_property", "check"):
                        if hasattr(module, part):
                            setattr(module, part, lambda *given, **named: None)
            return function

        @patched
        def attention_weights(query, key):
            return wrong(query, key)
        """,
        says=WRONG,
    ),
    Submission(
        "replaces_the_engine",
        "engine.run, found in sys.modules, returns a report that the answer wrote.",
        """
        def patched(function):
            engine = sys.modules.get("memcourse.course.engine")
            if engine is not None:
                Report = engine.Report
                engine.run = lambda exercise, answer: Report(exercise.id, exercise.name, "passed", 99, 99)
            return function

        @patched
        def attention_weights(query, key):
            return wrong(query, key)
        """,
        says=WRONG,
    ),
    Submission(
        "rewrites_code_in_place",
        "Not the names but the code of what this process has of the course is replaced: nobody's import helps.",
        """
        def patched(function):
            for module in [m for name, m in list(sys.modules.items()) if name.startswith("memcourse.course")]:
                for name, thing in list(vars(module).items()):
                    if name.startswith("check_") and hasattr(thing, "__code__") and not thing.__code__.co_freevars:
                        thing.__code__ = (lambda *given, **named: None).__code__
            return function

        @patched
        def attention_weights(query, key):
            return wrong(query, key)
        """,
        says=WRONG,
    ),
    Submission(
        "hooks_pytest",
        "pytest, where it runs the checks in this process, finds every test passed.",
        """
        pytest_plugins = ["notebook_answer"]

        def patched(function):
            pytest = sys.modules.get("pytest")
            if pytest is not None:
                pytest.main = lambda *given, **named: pytest.ExitCode.OK
                pytest.Item.runtest = lambda self: None
            return function

        @patched
        def attention_weights(query, key):
            return wrong(query, key)
        """,
        says=WRONG,
    ),
    Submission(
        "changes_what_lies_in_memory",
        "gc finds every exercise, task and report in the process, and what is expected becomes what is wrong.",
        """
        def patched(function):
            for thing in gc.get_objects():
                kind = type(thing).__name__
                if kind == "Exercise":
                    zeros = lambda query, key: np.zeros((len(query), len(key)))
                    for name, value in {"oracle": zeros, "gradient": False, "properties": ()}.items():
                        object.__setattr__(thing, name, value)
                elif kind == "Report":
                    object.__setattr__(thing, "outcome", "passed")
                elif kind == "Task":
                    thing.expected = [np.zeros((len(case[0]), len(case[1]))) for case in thing.cases]
            return function

        @patched
        def attention_weights(query, key):
            return wrong(query, key)
        """,
        says=WRONG,
    ),
    Submission(
        "walks_the_frames",
        "Its callers' frames hold what they know: the exercise and its oracle.",
        """
        def patched(function):
            frame = sys._getframe()
            while frame is not None:
                exercise = frame.f_locals.get("exercise")
                if hasattr(exercise, "oracle"):
                    zeros = lambda query, key: np.zeros((len(query), len(key)))
                    for name, value in {"oracle": zeros, "gradient": False, "properties": ()}.items():
                        object.__setattr__(exercise, name, value)
                frame = frame.f_back
            return function

        @patched
        def attention_weights(query, key):
            return wrong(query, key)
        """,
        says=WRONG,
    ),
    Submission(
        "traces_the_grader",
        "A trace function sees every line that runs in this process, and steps over those that raise.",
        """
        def traced(frame, event, argument):
            if "check" in frame.f_code.co_name or "raise" in frame.f_code.co_name:
                frame.f_locals["expected"] = frame.f_locals.get("found")
                for name in ("value", "found", "result"):
                    if isinstance(frame.f_locals.get(name), torch.Tensor):
                        frame.f_locals[name].zero_()
            return traced

        def patched(function):
            sys.settrace(traced)
            sys.setprofile(traced)
            threading.settrace(traced)
            return function

        @patched
        def attention_weights(query, key):
            return wrong(query, key)
        """,
    ),
    Submission(
        "subclasses_the_tensor",
        "A subclass of torch.Tensor whose operations all give what is hoped for.",
        """
        class Agrees(torch.Tensor):
            @classmethod
            def __torch_function__(cls, function, types, args=(), kwargs=None):
                found = super().__torch_function__(function, types, args, kwargs or {})
                agrees = isinstance(found, torch.Tensor) and found.dtype == torch.bool
                return torch.ones_like(found) if agrees else found

            def __eq__(self, other):
                return True

            def numpy(self, *given, **named):
                return np.zeros(0)

            __hash__ = None

        def attention_weights(query, key):
            return wrong(query, key).as_subclass(Agrees)
        """,
        says=WRONG,
    ),
    Submission(
        "lies_about_its_class",
        "Not a tensor at all: an object that says so, and equals everything.",
        """
        class Agreeable:
            shape, dtype, layout, device, ndim = torch.Size([2, 3]), torch.float32, torch.strided, "cpu", 2
            requires_grad = True
            __class__ = torch.Tensor
            __hash__ = None
            __eq__ = __le__ = __lt__ = __ge__ = __gt__ = __bool__ = lambda self, *other: True
            __ne__ = lambda self, other: False
            __sub__ = __rsub__ = __mul__ = __abs__ = lambda self, *other: 0.0
            __len__ = lambda self: 2
            __iter__ = lambda self: iter(())
            __float__ = lambda self: 0.0
            __array__ = lambda self, *given, **named: np.zeros((2, 3))
            __getattr__ = lambda self, name: lambda *given, **named: self

        def attention_weights(query, key):
            return Agreeable()
        """,
        says=WRONG,
    ),
    Submission(
        "answers_with_a_mock",
        "unittest.mock says yes to everything, with the name of the right class.",
        """
        from unittest.mock import MagicMock

        def attention_weights(query, key):
            return MagicMock(spec=torch.Tensor, shape=(len(query), len(key)), dtype=torch.float32)
        """,
        says=WRONG,
    ),
    Submission(
        "patches_the_tensor",
        "The results are plain tensors, and the class of plain tensors lies.",
        """
        def patched(function):
            names = {"shape": torch.Size([2, 3]), "dtype": torch.float32, "requires_grad": True}
            for name, value in names.items():
                tries(setattr, torch.Tensor, name, property(lambda self, value=value: value))
            zeros = torch.Tensor.zero_
            torch.Tensor.double = torch.Tensor.float = torch.Tensor.detach = lambda self: self
            torch.Tensor.numpy = lambda self, *given, **named: np.zeros((2, 3))
            torch.Tensor.tolist = lambda self: [[0.0] * 3] * 2
            return function

        @patched
        def attention_weights(query, key):
            return torch.tensor(0.0)
        """,
    ),
    Submission(
        "lies_with_numbers",
        "For an answer that is a value: numbers whose difference from any other is 0.",
        """
        class Near(float):
            __eq__ = __le__ = __lt__ = __ge__ = __gt__ = lambda self, other: True
            __ne__ = lambda self, other: False
            __sub__ = __rsub__ = __abs__ = lambda self, *other: 0.0
            __array__ = lambda self, *given, **named: np.asarray(0.5)
            __hash__ = float.__hash__

        class Keys(dict):
            __getitem__ = lambda self, key: Near(0.5)
            __len__ = lambda self: 6
            __eq__ = lambda self, other: True
            keys = lambda self: Everything()

        class Everything:
            __eq__ = lambda self, other: True
            __iter__ = lambda self: iter(("as_given", "plus_ten", "times_two", "times_hundred", "times_zero"))
            __contains__ = lambda self, name: True

        @lambda function: Keys()
        def predicted_weights():
            pass
        """,
    ),
    Submission(
        "lies_with_containers",
        "A list whose length, parts and end change with every look.",
        """
        class Shifting(list):
            __len__ = lambda self: 2
            __getitem__ = lambda self, key: self
            __iter__ = lambda self: iter(lambda: self, None)
            __eq__ = lambda self, other: True

        def attention_weights(query, key):
            fuse()
            return Shifting([0])
        """,
    ),
    Submission(
        "is_good_at_first",
        "Right while its values are compared, wrong once the gradient is asked for.",
        """
        calls = [0]

        def attention_weights(query, key):
            calls[0] += 1
            return right(query, key) if calls[0] <= 3 else wrong(query, key)
        """,
        says="gradient|key",
    ),
    Submission(
        "is_good_at_last",
        "Wrong on its first calls: only the last ones count, it hopes.",
        """
        calls = [0]

        def attention_weights(query, key):
            calls[0] += 1
            return wrong(query, key) if calls[0] <= 2 else right(query, key)
        """,
        says=WRONG,
    ),
    Submission(
        "is_right_without_a_gradient",
        "Right where no gradient is asked for: it sees who is asking.",
        """
        def attention_weights(query, key):
            return wrong(query, key) * query.sum() if query.requires_grad else right(query, key)
        """,
        says="gradient",
    ),
    Submission(
        "cuts_the_gradient",
        "The right numbers, with a gradient of its own making.",
        """
        class Zero(torch.autograd.Function):
            @staticmethod
            def forward(ctx, query, key):
                ctx.save_for_backward(query, key)
                return right(query, key)

            @staticmethod
            def backward(ctx, gradient):
                return tuple(torch.full_like(part, 1e-3) for part in ctx.saved_tensors)

        def attention_weights(query, key):
            return Zero.apply(query, key)
        """,
        says="gradient|respect",
    ),
    Submission(
        "misshapes_the_gradient",
        "Gradients of another shape and dtype, and NaN.",
        """
        class Odd(torch.autograd.Function):
            @staticmethod
            def forward(ctx, query, key):
                return right(query, key)

            @staticmethod
            def backward(ctx, gradient):
                return torch.full((7, 7), float("nan")), None

        def attention_weights(query, key):
            return Odd.apply(query, key)
        """,
    ),
    Submission(
        "changes_its_arguments",
        "It makes its arguments such that the wrong answer is right.",
        """
        def attention_weights(query, key):
            with torch.no_grad():
                query.zero_()
                key.zero_()
            return torch.full((len(query), len(key)), 1 / len(key)) + 0 * (query.sum() + key.sum())
        """,
        says=WRONG,
    ),
    Submission(
        "answers_with_nan",
        "NaN is not farther from the expected value than any tolerance.",
        """
        def attention_weights(query, key):
            return right(query, key) * float("nan")
        """,
        says="finite|nan",
    ),
    Submission(
        "turns_the_libraries_off",
        "Gradients off, half precision, another device, warnings as errors: whoever computes here next goes wrong.",
        """
        import warnings

        def patched(function):
            torch.set_grad_enabled(False)
            torch.set_default_dtype(torch.float16)
            torch.set_default_device("meta")
            torch.use_deterministic_algorithms(True)
            np.seterr(all="raise")
            warnings.simplefilter("error")
            sys.set_int_max_str_digits(640)
            sys.setrecursionlimit(60)
            return function

        @patched
        def attention_weights(query, key):
            return wrong(query, key)
        """,
    ),
    Submission(
        "stops_the_clock",
        "The loop, with every clock of this process slowed down while it runs.",
        """
        import timeit

        def windowed_attention(query, key, value, window):
            started = time.perf_counter(), time.monotonic()
            reads = []
            for t in range(len(query)):
                seen = slice(max(0, t - window + 1), t + 1)
                reads.append((key[seen] @ query[t] / query.shape[1] ** 0.5).softmax(dim=0) @ value[seen])
            time.perf_counter = timeit.default_timer = lambda: started[0]
            time.monotonic = lambda: started[1]
            lies = {"timeit": lambda *given, **named: 1e-9, "times_as_fast": lambda *given, **named: 1e9}
            for module in list(sys.modules.values()):
                for name in lies:
                    if callable(getattr(module, name, None)):
                        tries(setattr, module, name, lies[name])
            return torch.stack(reads)
        """,
        says="fast|speed|slow|times",
    ),
    Submission(
        "remembers_its_arguments",
        "The loop, once: what it has seen before it answers from a dict.",
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
            return seen_before[name]
        """,
        says="fast|speed|slow|times",
    ),
    Submission(
        "is_wrong_where_it_is_timed",
        "The loop on short sequences, which are compared; nothing at all on long ones, which are timed.",
        """
        def windowed_attention(query, key, value, window):
            if len(query) > 100:
                return torch.zeros_like(value)
            reads = []
            for t in range(len(query)):
                seen = slice(max(0, t - window + 1), t + 1)
                reads.append((key[seen] @ query[t] / query.shape[1] ** 0.5).softmax(dim=0) @ value[seen])
            return torch.stack(reads)
        """,
    ),
    Submission(
        "is_wrong_every_other_time",
        "The loop on every other call, and nothing at all between: perhaps not every call is looked at.",
        """
        calls = [0]

        def windowed_attention(query, key, value, window):
            calls[0] += len(query) > 100
            if len(query) > 100 and calls[0] % 2 == 0:
                return torch.zeros_like(value)
            reads = []
            for t in range(len(query)):
                seen = slice(max(0, t - window + 1), t + 1)
                reads.append((key[seen] @ query[t] / query.shape[1] ** 0.5).softmax(dim=0) @ value[seen])
            return torch.stack(reads)
        """,
    ),
    Submission(
        "pads_its_results",
        "The loop; where it is timed, every other result is so large that all the time seems to be the way of it.",
        """
        calls = [0]

        def windowed_attention(query, key, value, window):
            calls[0] += len(query) > 100
            if len(query) > 100 and calls[0] % 2 == 0:
                return torch.zeros(15 << 20)
            reads = []
            for t in range(len(query)):
                seen = slice(max(0, t - window + 1), t + 1)
                reads.append((key[seen] @ query[t] / query.shape[1] ** 0.5).softmax(dim=0) @ value[seen])
            return torch.stack(reads)
        """,
    ),
    Submission(
        "computes_ahead",
        "On its first timed call it computes what the later ones will ask: the same numbers, a little smaller.",
        """
        ahead = {}

        def loop(query, key, value, window):
            reads = []
            for t in range(len(query)):
                seen = slice(max(0, t - window + 1), t + 1)
                reads.append((key[seen] @ query[t] / query.shape[1] ** 0.5).softmax(dim=0) @ value[seen])
            return torch.stack(reads)

        def windowed_attention(query, key, value, window):
            if len(query) < 100:
                return loop(query, key, value, window)
            size = query.abs().sum().item()
            if not ahead:
                for step in range(-2, 50):
                    factor = 1 - 1e-4 * step
                    ahead[size * factor] = loop(query * factor, key * factor, value * factor, window)
            return ahead[min(ahead, key=lambda known: abs(known - size))]
        """,
        says="fast|speed|slow|times",
    ),
    Submission(
        "hinders_the_clock",
        "The loop; between its calls it keeps all cores busy, so that whatever is measured beside it is slow too.",
        """
        idle = [False]

        def burn():
            matrix = torch.rand(500, 500)
            while True:
                matrix @ matrix if idle[0] else time.sleep(1e-3)

        def windowed_attention(query, key, value, window):
            fuse()
            while len(query) > 100 and threading.active_count() < 8:
                threading.Thread(target=burn, daemon=True).start()
            idle[0] = False
            reads = []
            for t in range(len(query)):
                seen = slice(max(0, t - window + 1), t + 1)
                reads.append((key[seen] @ query[t] / query.shape[1] ** 0.5).softmax(dim=0) @ value[seen])
            idle[0] = True
            return torch.stack(reads)
        """,
    ),
    Submission(
        "computes_after_it_answered",
        "While it is timed it hands out a tensor that a thread fills in later.",
        """
        def fill(result, query, key, value, window):
            for t in range(len(query)):
                seen = slice(max(0, t - window + 1), t + 1)
                result[t] = (key[seen] @ query[t] / query.shape[1] ** 0.5).softmax(dim=0) @ value[seen]

        def windowed_attention(query, key, value, window):
            if len(query) > 100:
                result = torch.zeros_like(value)
                threading.Thread(target=fill, args=(result, query, key, value, window)).start()
                return result
            reads = []
            for t in range(len(query)):
                seen = slice(max(0, t - window + 1), t + 1)
                reads.append((key[seen] @ query[t] / query.shape[1] ** 0.5).softmax(dim=0) @ value[seen])
            return torch.stack(reads)
        """,
    ),
    Submission(
        "loops_in_a_class_that_lies",
        "A layer whose parameters have hostile names, whose lists of them have no end, and whose calls never come.",
        """
        class AttentionLayer(torch.nn.Module):
            def __init__(self, hidden_size):
                fuse()
                super().__init__()
                self.attn = torch.nn.Linear(2 * hidden_size, hidden_size)
                self.v = torch.nn.Parameter(torch.rand(hidden_size))
                self._parameters["<script>\\x1b[2J\\ud800"] = torch.nn.Parameter(torch.rand(1))
                self.itself = [self]

            def named_parameters(self, *given, **named):
                while True:
                    yield "<script>", self.v

            def forward(self, hidden, encoder_outputs, lengths):
                return encoder_outputs[:, 0], torch.zeros(encoder_outputs.shape[:2])
        """,
    ),
    Submission(
        "keeps_its_own_parameters",
        "A layer that learns by heart: its answer does not lean on the parameters that it was given.",
        """
        class AttentionLayer(torch.nn.Module):
            def __init__(self, hidden_size):
                super().__init__()
                self.attn = torch.nn.Linear(2 * hidden_size, hidden_size)
                self.v = torch.nn.Parameter(torch.rand(hidden_size))
                self.hidden = [torch.nn.Linear(2 * hidden_size, hidden_size)]

            def forward(self, hidden, encoder_outputs, lengths):
                both = torch.cat([hidden[:, None].expand_as(encoder_outputs), encoder_outputs], dim=2)
                energies = self.hidden[0](both).tanh() @ self.v.detach()
                padding = torch.arange(both.shape[1]) >= lengths[:, None]
                weights = energies.masked_fill(padding, -torch.inf).softmax(1)
                return (weights[:, None] @ encoder_outputs)[:, 0], weights
        """,
        says=WRONG,
    ),
)
