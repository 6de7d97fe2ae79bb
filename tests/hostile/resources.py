"""Submissions that take more than their share: of time, memory, processes, output or disk; and that end what runs."""

from .submission import ENDED, LATE, MEMORY, Submission

RESOURCES = (
    Submission(
        "loops_in_python",
        "A loop of Python without an end.",
        """
        def attention_weights(query, key):
            fuse()
            while True:
                pass
        """,
        says=LATE,
    ),
    Submission(
        "loops_while_defined",
        "The loop runs before the answer exists: in a decorator.",
        """
        def endless(function):
            fuse()
            while True:
                pass

        @endless
        def attention_weights(query, key):
            return wrong(query, key)
        """,
        says=LATE,
    ),
    Submission(
        "loops_in_re",
        "A regular expression that backtracks for ever, in C.",
        """
        import re

        def attention_weights(query, key):
            fuse()
            re.match("(a+)+$", "a" * 64 + "b")
            return wrong(query, key)
        """,
        says=LATE,
    ),
    Submission(
        "sums_for_ever",
        "One call of C that no signal handler of Python interrupts.",
        """
        def attention_weights(query, key):
            fuse()
            sum(range(10 ** 18))
            return wrong(query, key)
        """,
        says=LATE,
    ),
    Submission(
        "raises_huge_powers",
        "Arithmetic with integers of a hundred million digits.",
        """
        def attention_weights(query, key):
            fuse()
            7 ** 7 ** 10
            return wrong(query, key)
        """,
        says=LATE,
    ),
    Submission(
        "computes_for_ever_in_torch",
        "One operation of torch that takes for ever: the eigenvalues of a large matrix.",
        """
        def attention_weights(query, key):
            fuse()
            torch.linalg.eigvals(torch.rand(6000, 6000))
            return wrong(query, key)
        """,
        says=LATE,
    ),
    Submission(
        "loops_in_the_gradient",
        "The result is right, and its gradient takes for ever.",
        """
        class Endless(torch.autograd.Function):
            @staticmethod
            def forward(ctx, x):
                return x.clone()

            @staticmethod
            def backward(ctx, gradient):
                fuse()
                while True:
                    pass

        def attention_weights(query, key):
            return Endless.apply(right(query, key))
        """,
        says=LATE,
    ),
    Submission(
        "sleeps",
        "It takes no computing time at all, only time.",
        """
        def attention_weights(query, key):
            time.sleep(90)
        """,
        says=LATE,
    ),
    Submission(
        "ignores_signals",
        "It ignores every signal that can be ignored and turns the alarm off, then loops.",
        """
        def attention_weights(query, key):
            fuse()
            for number in set(signal.Signals) - {signal.SIGKILL, signal.SIGSTOP, signal.SIGXCPU}:
                tries(signal.signal, number, signal.SIG_IGN)
            signal.alarm(0)
            signal.setitimer(signal.ITIMER_REAL, 0)
            while True:
                pass
        """,
        says=LATE,
    ),
    Submission(
        "never_exits",
        "A wrong answer that leaves a thread, an exit handler and a destructor behind, each without an end.",
        """
        import atexit

        class Stays:
            def __del__(self):
                while True:
                    time.sleep(1)

        def attention_weights(query, key):
            fuse()
            atexit.register(time.sleep, 90)
            threading.Thread(target=time.sleep, args=(90,)).start()
            sys.stays = getattr(sys, "stays", None) or Stays()
            return wrong(query, key)
        """,
    ),
    Submission(
        "fills_memory_with_lists",
        "Python objects up to 3 GB.",
        """
        def attention_weights(query, key):
            kept = [bytearray(1 << 20) for _ in range(3 << 10)]
            return wrong(query, key)
        """,
        says=MEMORY,
    ),
    Submission(
        "fills_memory_in_numpy",
        "An array of 3 GB, every page of it written.",
        """
        def attention_weights(query, key):
            np.ones(3 << 27)
            return wrong(query, key)
        """,
        says=MEMORY,
    ),
    Submission(
        "fills_memory_in_torch",
        "A tensor of 3 GB, every page of it written.",
        """
        def attention_weights(query, key):
            torch.ones(3 << 28)
            return wrong(query, key)
        """,
        says=MEMORY,
    ),
    Submission(
        "multiplies_a_string",
        "A string of 3 GB.",
        """
        def attention_weights(query, key):
            "x" * (3 << 30)
            return wrong(query, key)
        """,
        says=MEMORY,
    ),
    Submission(
        "asks_for_a_petabyte",
        "More memory than any machine has, which torch is asked for and never touches.",
        """
        def attention_weights(query, key):
            torch.empty(1 << 48)
            return wrong(query, key)
        """,
        says=MEMORY,
    ),
    Submission(
        "uses_the_last_byte",
        "Memory is filled to the last byte (3 GB at most), so that even its own end needs more than there is.",
        """
        kept = []

        def attention_weights(query, key):
            size, total = 1 << 24, 0
            while size > 16 and total < 3 << 30:
                try:
                    kept.append(bytearray(size))
                    total += size
                except MemoryError:
                    size //= 2
            raise MemoryError
        """,
        says=MEMORY,
    ),
    Submission(
        "forks_a_bomb",
        "Processes that fork processes: 200 at most, 20 seconds at most.",
        """
        def attention_weights(query, key):
            ends = time.time() + 20
            for _ in range(200):
                if tries(child, lambda: time.sleep(max(0, ends - time.time()))) is None:
                    break
            return wrong(query, key)
        """,
    ),
    Submission(
        "forks_out_of_its_group",
        "A process that leaves its session, its folder and its environment, to outlive the answer by 20 seconds.",
        """
        def hide():
            os.setsid()
            os.chdir("/")
            if os.fork():
                os._exit(0)
            signal.alarm(20)
            os.closerange(0, 1 << 12)
            tries(os.execve, sys.executable, [sys.executable, "-c", "import time; time.sleep(20)"], {})
            time.sleep(20)

        def attention_weights(query, key):
            tries(child, hide)
            time.sleep(0.2)
            return wrong(query, key)
        """,
        promised="seccomp",
    ),
    Submission(
        "starts_a_program",
        "A program of the system, in a session of its own.",
        """
        def attention_weights(query, key):
            tries(lambda: subprocess.Popen(["sleep", "20"], start_new_session=True, cwd="/"))
            return wrong(query, key)
        """,
    ),
    Submission(
        "starts_threads",
        "Threads until there are 500 or the system refuses; all compute until the end.",
        """
        def busy():
            while time.time() < ends[0]:
                pass

        ends = [0]

        def attention_weights(query, key):
            fuse()
            ends[0] = time.time() + 20
            for _ in range(500):
                if tries(lambda: threading.Thread(target=busy, daemon=True).start() or True) is None:
                    break
            return wrong(query, key)
        """,
    ),
    Submission(
        "exits_as_if_all_were_well",
        "It ends the process at once, with the exit code of success.",
        """
        def attention_weights(query, key):
            os._exit(0)
        """,
        says=ENDED,
    ),
    Submission(
        "exits_while_defined",
        "It ends the process before the answer exists.",
        """
        @lambda function: os._exit(0)
        def attention_weights(query, key):
            return wrong(query, key)
        """,
        says=ENDED,
    ),
    Submission(
        "exits_in_the_gradient",
        "The result is right, and its gradient ends the process.",
        """
        class Leaves(torch.autograd.Function):
            @staticmethod
            def forward(ctx, x):
                return x.clone()

            @staticmethod
            def backward(ctx, gradient):
                os._exit(0)

        def attention_weights(query, key):
            return Leaves.apply(right(query, key))
        """,
        says=ENDED,
    ),
    Submission(
        "raises_what_nobody_catches",
        "SystemExit with the code of success: `except Exception` lets it through.",
        """
        def attention_weights(query, key):
            raise SystemExit(0)
        """,
        says="SystemExit",
    ),
    Submission(
        "interrupts_the_grader",
        "KeyboardInterrupt, which the grader takes for the instructor's Ctrl-C if it lets it through.",
        """
        def attention_weights(query, key):
            raise KeyboardInterrupt
        """,
        says="KeyboardInterrupt",
    ),
    Submission(
        "kills_itself",
        "The signal that cannot be caught.",
        """
        def attention_weights(query, key):
            os.kill(os.getpid(), signal.SIGKILL)
            time.sleep(90)
        """,
        says=ENDED,
    ),
    Submission(
        "stops_itself",
        "It stops without an end: a parent that only waits for the end waits for ever.",
        """
        def attention_weights(query, key):
            os.kill(os.getpid(), signal.SIGSTOP)
            time.sleep(90)
        """,
    ),
    Submission(
        "kills_its_parent",
        "Its parent is what every later answer is started from.",
        """
        def attention_weights(query, key):
            if os.getppid() > 1:
                tries(os.kill, os.getppid(), signal.SIGKILL)
            return wrong(query, key)
        """,
        promised="seccomp",
    ),
    Submission(
        "stops_its_parent",
        "A parent that is stopped starts nothing any more, and does not end either.",
        """
        def attention_weights(query, key):
            if os.getppid() > 1:
                tries(os.kill, os.getppid(), signal.SIGSTOP)
            return wrong(query, key)
        """,
        promised="seccomp",
    ),
    Submission(
        "kills_its_group",
        "Everything in its process group: the grader too, if they share one.",
        """
        def attention_weights(query, key):
            tries(os.kill, 0, signal.SIGKILL)
            time.sleep(1)
            return wrong(query, key)
        """,
    ),
    Submission(
        "kills_everything",
        "Every process that it may: in its own process namespace all, elsewhere only the canary.",
        """
        def attention_weights(query, key):
            inside = tries(os.readlink, "/proc/self/ns/pid")
            tries(os.kill, -1 if inside and inside != OUTER_PROCESSES else CANARY, signal.SIGKILL)
            return wrong(query, key)
        """,
        promised="seccomp",
    ),
    Submission(
        "signals_by_descriptor",
        "It lets the kernel send the signal: a pipe tells its owner, which need not be this process, by any signal.",
        """
        import fcntl

        def attention_weights(query, key):
            read, write = os.pipe()
            tries(fcntl.fcntl, read, fcntl.F_SETOWN, CANARY)
            tries(fcntl.fcntl, read, 10, signal.SIGKILL)  # F_SETSIG
            tries(fcntl.fcntl, read, fcntl.F_SETFL, os.O_ASYNC)
            tries(os.write, write, b"x")
            return wrong(query, key)
        """,
        promised="seccomp",
    ),
    Submission(
        "recurses_in_python",
        "It calls itself until Python stops it.",
        """
        def attention_weights(query, key):
            return attention_weights(query, key)
        """,
        says="RecursionError",
    ),
    Submission(
        "recurses_in_c",
        "A structure too deep for the C stack.",
        """
        def attention_weights(query, key):
            sys.setrecursionlimit(10 ** 9)
            deep = ()
            for _ in range(10 ** 6):
                deep = (deep,)
            hash(deep)
            return wrong(query, key)
        """,
        says=ENDED,
    ),
    Submission(
        "segfaults",
        "It reads at address 0.",
        """
        def attention_weights(query, key):
            ctypes.string_at(0)
        """,
        says=ENDED,
    ),
    Submission(
        "aborts",
        "It ends as a failed assertion of C does, with a core dump where those are written.",
        """
        def attention_weights(query, key):
            os.abort()
        """,
        says=ENDED,
    ),
    Submission(
        "floods_its_output",
        "200 MB on stdout and as many on stderr.",
        """
        def attention_weights(query, key):
            for _ in range(200):
                print("x" * (1 << 20))
                tries(os.write, 1, b"x" * (1 << 20))
                tries(os.write, 2, b"y" * (1 << 20))
            return wrong(query, key)
        """,
    ),
    Submission(
        "floods_every_descriptor",
        "Rubbish on every descriptor that is open, without an end.",
        """
        def attention_weights(query, key):
            fuse()
            ends = time.time() + 30
            while time.time() < ends:
                for descriptor in range(3, 256):
                    tries(os.write, descriptor, b"x" * 65536)
            return wrong(query, key)
        """,
    ),
    Submission(
        "closes_every_descriptor",
        "Nothing more can be said to it or heard from it; it goes on for a while.",
        """
        def attention_weights(query, key):
            os.closerange(0, 1 << 12)
            time.sleep(20)
        """,
    ),
    Submission(
        "opens_every_descriptor",
        "No descriptor is left for anybody in this process.",
        """
        def attention_weights(query, key):
            while tries(os.dup, 0) is not None:
                pass
            return wrong(query, key)
        """,
    ),
    Submission(
        "fills_the_disk_with_one_file",
        "A file of 400 MB.",
        """
        def attention_weights(query, key):
            with open("big", "wb") as file:
                for _ in range(400):
                    file.write(bytes(1 << 20))
            return wrong(query, key)
        """,
        says="too large|File|space|quota|values",
    ),
    Submission(
        "fills_the_disk_with_many_files",
        "Forty files of 10 MB, none of which is too large.",
        """
        def attention_weights(query, key):
            for n in range(40):
                tries(Path(f"part{n}").write_bytes, bytes(10 << 20))
            return wrong(query, key)
        """,
    ),
    Submission(
        "makes_many_files",
        "Twenty thousand empty files.",
        """
        def attention_weights(query, key):
            for n in range(20_000):
                if tries(lambda: open(f"file{n}", "w").close() or True) is None:
                    break
            return wrong(query, key)
        """,
    ),
    Submission(
        "makes_deep_folders",
        "Three thousand folders one inside the other: no path names the innermost, and what removes them recurses.",
        """
        def attention_weights(query, key):
            for _ in range(3000):
                if tries(lambda: os.mkdir("deeper") or os.chdir("deeper") or True) is None:
                    break
            return wrong(query, key)
        """,
    ),
    Submission(
        "takes_the_rights_away",
        "Folders that not even their owner may look into.",
        """
        def attention_weights(query, key):
            tries(os.makedirs, "closed/inside")
            tries(Path("closed/inside/file").write_text, "here")
            tries(os.chmod, "closed/inside", 0)
            os.chmod("closed", 0)
            tries(os.chmod, ".", 0)
            return wrong(query, key)
        """,
    ),
    Submission(
        "makes_a_sparse_file",
        "A file that says it has a terabyte, and holds nothing.",
        """
        def attention_weights(query, key):
            with open("sparse", "wb") as file:
                tries(file.truncate, 1 << 40)
            return wrong(query, key)
        """,
    ),
    Submission(
        "makes_a_pipe",
        "A named pipe in the scratch folder: whoever reads it waits for ever.",
        """
        def attention_weights(query, key):
            tries(os.mkfifo, "pipe")
            return wrong(query, key)
        """,
    ),
    Submission(
        "fills_shared_memory",
        "64 MB where every process may look, and where nobody tidies up.",
        """
        def attention_weights(query, key):
            tries(Path(f"/dev/shm/{TOKEN}-kept").write_bytes, bytes(64 << 20))
            return wrong(query, key)
        """,
        promised="namespaces",
    ),
    Submission(
        "raises_a_megabyte",
        "An exception whose message is a megabyte long.",
        """
        def attention_weights(query, key):
            raise ValueError("x" * (1 << 20))
        """,
        says="ValueError",
    ),
    Submission(
        "answers_with_a_gigabyte",
        "A right shape for nothing: a result that takes the grader's memory if it is read.",
        """
        def attention_weights(query, key):
            return torch.zeros(1 << 28)
        """,
    ),
)
