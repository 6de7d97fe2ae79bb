"""Submissions that take what is not theirs: solutions, checks, secrets, other people's answers, the network.

All loot is a right answer: whoever gets hold of it earns points with it.
"""

from .submission import Submission

WITH = """
        def attention_weights(query, key):
            names = {}
            exec(tries(steal) or "attention_weights = wrong", {"wrong": wrong}, names)
            return names["attention_weights"](query, key)
"""

STEALING = (
    Submission(
        "imports_the_answer",
        "The library has what the chapter teaches.",
        """
        def attention_weights(query, key):
            from memcourse.attention import attend
            return attend(query, key, key)[1]
        """,
        says="attention|memcourse",
    ),
    Submission(
        "imports_the_answer_through_another",
        "Other modules of the library stand on the chapter's: they may have it among their names.",
        """
        def steal(query, key):
            import memcourse
            import pkgutil
            for module in pkgutil.iter_modules(memcourse.__path__):
                known = tries(__import__, f"memcourse.{module.name}")
                known = vars(sys.modules.get(f"memcourse.{module.name}", memcourse))
                for name in ("attend", "MultiHeadAttention", "address"):
                    if name in known and getattr(known[name], "__module__", "") == "memcourse.attention":
                        return known["attend"](query, key, key)[1]

        def attention_weights(query, key):
            found = tries(steal, query, key)
            return wrong(query, key) if found is None else found
        """,
    ),
    Submission(
        "finds_the_library_by_path",
        "Where Python looks for modules, or where an installation says that it came from, there is the whole library.",
        """
        def folders():
            yield from sys.path
            yield COURSE
            import site
            packages = [*site.getsitepackages(), site.getusersitepackages()]
            for package in packages:
                yield package
                for named in Path(package).glob("*.pth"):
                    yield from tries(lambda: named.read_text().splitlines()) or []
                for named in Path(package).glob("memcourse*.dist-info/direct_url.json"):
                    yield json.loads(named.read_text())["url"].removeprefix("file://")
            for variable in ("PYTHONPATH", "PWD", "OLDPWD"):
                yield from os.environ.get(variable, "").split(":")

        def attention_weights(query, key):
            for folder in folders():
                file = Path(folder or ".") / "memcourse" / "attention.py"
                source = tries(file.read_text) or ""
                if "def attend" in source:
                    names = {"__name__": "stolen"}
                    exec(source, names)
                    return names["attend"](query, key, key)[1]
            return wrong(query, key)
        """,
        promised="namespaces",
    ),
    Submission(
        "asks_the_package_index_on_disk",
        "importlib.metadata knows every file of every package that is installed.",
        """
        from importlib import metadata

        def attention_weights(query, key):
            for file in tries(metadata.files, "memcourse") or ():
                if file.name == "attention.py" or file.suffix == ".pth":
                    source = tries(file.locate().read_text) or ""
                    if file.suffix == ".pth":
                        source = tries((Path(source.strip()) / "memcourse" / "attention.py").read_text) or ""
                    if "def attend" in source:
                        names = {"__name__": "stolen"}
                        exec(source, names)
                        return names["attend"](query, key, key)[1]
            return wrong(query, key)
        """,
        promised="namespaces",
    ),
    Submission(
        "imports_the_checks",
        "The checks have an oracle, and their hints the solution.",
        """
        def attention_weights(query, key):
            from memcourse.course.checks.attention_oracles import weights_oracle
            return torch.tensor(weights_oracle(query.detach().numpy(), key.detach().numpy()), dtype=query.dtype)
        """,
        says="course|gradient",
    ),
    Submission(
        "finds_the_checks_in_memory",
        "What was loaded before it lies in this process still: any function that is named as an oracle.",
        """
        def attention_weights(query, key):
            for thing in gc.get_objects():
                name = getattr(thing, "__name__", "") if callable(thing) else ""
                if name in ("attend", "weights_by_einsum") and hasattr(thing, "__code__"):
                    return thing(query, key, key)[1]
                if name == "scaled_dot_product_weights":
                    return thing(query, key)
            for name, module in list(sys.modules.items()):
                if name.startswith("memcourse.course.checks"):
                    for hint in [hint for e in getattr(module, "EXERCISES", ()) if e.id == "1.2" for hint in e.hints]:
                        if "query @ key.T" in hint:
                            return (query @ key.T / query.shape[-1] ** 0.5).softmax(-1)
            return wrong(query, key)
        """,
    ),
    Submission(
        "reads_a_known_path",
        "Somebody told it where the solutions are.",
        """
        def steal():
            return Path(LOOT).read_text()
        """
        + WITH,
        promised="namespaces",
    ),
    Submission(
        "walks_the_file_system",
        "From the current folder upwards, and from the temporary folder down, for a second.",
        """
        def steal():
            until = time.time() + 1
            here = [Path.cwd(), *Path.cwd().parents][:-1]
            for top in (*here, Path(ROOT), Path("/tmp"), Path("/home"), Path("/root"), Path("/work"), Path("/srv")):
                for folder, _, files in os.walk(top):
                    if "loot.py" in files:
                        return Path(folder, "loot.py").read_text()
                    if time.time() > until:
                        return None
        """
        + WITH,
        promised="namespaces",
    ),
    Submission(
        "climbs_out_of_its_folder",
        "By relative paths, and through every descriptor that leads to a folder.",
        """
        def steal():
            target = LOOT.lstrip("/")
            for way in ("../" * n for n in range(1, 20)):
                for start in (".", "/proc/self/cwd", "/proc/self/root", "/proc/1/root"):
                    found = tries(Path(f"{start}/{way}{target}").read_text)
                    if found:
                        return found
                for descriptor in range(256):
                    opened = tries(lambda: os.open(way + target, os.O_RDONLY, dir_fd=descriptor))
                    if opened is not None:
                        return os.read(opened, 1 << 16).decode()
        """
        + WITH,
        promised="namespaces",
    ),
    Submission(
        "reads_its_neighbour",
        "The answer of another learner, from the folder of submissions.",
        """
        def steal():
            for file in sorted(Path(SUBMISSIONS).glob("*neighbour*")):
                return "".join(json.loads(file.read_text())["cells"][-1]["source"])
        """
        + WITH,
        promised="namespaces",
    ),
    Submission(
        "reads_its_environment",
        "The grader's environment holds its secrets: tokens, keys, here an answer.",
        """
        def steal():
            return os.environ["GRADER_SECRET"]
        """
        + WITH,
        says="values",
    ),
    Submission(
        "reads_other_environments",
        "/proc shows the environment with which every process was started.",
        """
        def steal():
            for file in Path("/proc").glob("[0-9]*/environ"):
                for entry in (tries(file.read_bytes) or b"").split(b"\\0"):
                    if entry.startswith(b"GRADER_SECRET="):
                        return entry.partition(b"=")[2].decode()
        """
        + WITH,
        promised="namespaces",
    ),
    Submission(
        "reads_other_memory",
        "/proc/PID/mem of its parent, of the canary and of process 1: an answer may lie there.",
        """
        def steal():
            for pid in (os.getppid(), CANARY, 1):
                for line in (tries(Path(f"/proc/{pid}/maps").read_text) or "").splitlines():
                    if "[heap]" in line or "[stack]" in line:
                        low, high = (int(end, 16) for end in line.split()[0].split("-"))
                        with open(f"/proc/{pid}/mem", "rb") as memory:
                            memory.seek(low)
                            held = memory.read(min(high - low, 1 << 24))
                        at = held.find(b"GRADER_SECRET=")
                        if at >= 0:
                            return held[at:].split(b"\\0")[0].partition(b"=")[2].decode()
        """
        + WITH,
        promised="namespaces",
    ),
    Submission(
        "reads_other_descriptors",
        "/proc/PID/fd and /proc/PID/cwd lead to what other processes have open.",
        """
        def steal():
            for process in Path("/proc").glob("[0-9]*"):
                if process.name == str(os.getpid()):
                    continue
                opened = tries(lambda: list((process / "fd").iterdir())) or []
                for link in (process / "cwd", process / "root", *opened):
                    found = tries((link / LOOT.lstrip("/")).read_text) or tries((link / "solutions/loot.py").read_text)
                    if found:
                        return found
        """
        + WITH,
        promised="namespaces",
    ),
    Submission(
        "reads_the_source_of_the_checks",
        "inspect.getsource of whatever calls it, for the right answer in a hint or an oracle.",
        """
        import inspect

        def attention_weights(query, key):
            for frame in inspect.stack():
                source = tries(inspect.getsource, sys.modules.get(frame.frame.f_globals.get("__name__"))) or ""
                if "weights_oracle" in source or "softmax" in source.replace("memcourse", ""):
                    if "notebook" not in frame.filename:
                        return right(query, key)
            return wrong(query, key)
        """,
    ),
    Submission(
        "calls_home",
        "TCP to a listener on this machine, as it could be anywhere.",
        """
        def steal():
            with socket.create_connection(("127.0.0.1", TCP), timeout=2) as connection:
                return connection.recv(1 << 16).decode()
        """
        + WITH,
        promised="seccomp",
    ),
    Submission(
        "asks_by_datagram",
        "UDP, as a question to a name server is asked.",
        """
        def steal():
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
                asking.settimeout(2)
                asking.sendto(b"answer?", ("127.0.0.1", UDP))
                return asking.recv(1 << 16).decode()
        """
        + WITH,
        promised="seccomp",
    ),
    Submission(
        "calls_a_unix_socket",
        "A socket that lies in the file system, as the daemons of a machine have.",
        """
        def steal():
            with socket.socket(socket.AF_UNIX) as connection:
                connection.connect(UNIX)
                return connection.recv(1 << 16).decode()
        """
        + WITH,
        promised="seccomp",
    ),
    Submission(
        "calls_an_abstract_socket",
        "A socket without a file: no mount namespace hides it.",
        """
        def steal():
            with socket.socket(socket.AF_UNIX) as connection:
                connection.connect(ABSTRACT)
                return connection.recv(1 << 16).decode()
        """
        + WITH,
        promised="seccomp",
    ),
    Submission(
        "asks_the_kernel",
        "The system calls by which sandboxes are left, each by its number; one that is allowed is enough.",
        """
        def attention_weights(query, key):
            calls = {  # of x86-64
                "execve": (59, 0, 0, 0), "socket": (41, 1, 1, 0), "ptrace": (101, 0, 0, 0, 0),
                "unshare": (272, 1 << 28), "setns": (308, 0, 0), "mount": (165, 0, 0, 0, 0, 0), "bpf": (321, 0, 0, 0),
                "keyctl": (250, 0, -3, 1),
                "io_uring_setup": (425, 1, ctypes.create_string_buffer(256)), "userfaultfd": (323, 1),
                "perf_event_open": (298, 0, 0, -1, -1, 0), "process_vm_readv": (310, CANARY, 0, 0, 0, 0, 0),
                "pidfd_open": (434, CANARY, 0), "open_by_handle_at": (304, -100, 0, 0), "chroot": (161, b"/"),
                "add_key": (248, b"user", b"hostile", b"x", 1, -2),
                "x32 getppid": ((1 << 30) + 110,),
            }
            call = ctypes.CDLL(None).syscall
            call.restype = ctypes.c_long
            for number, *given in calls.values():
                given = [ctypes.c_long(part) if isinstance(part, int) else part for part in given]
                if os.uname().machine == "x86_64" and call(ctypes.c_long(number), *given) >= 0:
                    return right(query, key)
            return wrong(query, key)
        """,
        promised="seccomp",
    ),
    Submission(
        "speaks_the_old_dialect",
        "System calls of 32 bits, whose numbers mean something else: a filter that forgets them forbids nothing.",
        """
        import mmap

        def attention_weights(query, key):
            code = bytes.fromhex("53 b8 67010000 bb 01000000 b9 01000000 31 d2 cd 80 48 98 5b c3")  # socket(1, 1, 0)
            page = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
            page.write(code)
            address = ctypes.addressof(ctypes.c_char.from_buffer(page))
            if os.uname().machine == "x86_64" and ctypes.CFUNCTYPE(ctypes.c_long)(address)() >= 0:
                return right(query, key)
            return wrong(query, key)
        """,
        promised="seccomp",
    ),
    Submission(
        "leaves_a_note",
        "An answer for whoever is graded next, in every place where everybody may write.",
        """
        def attention_weights(query, key):
            for folder in ("/tmp", "/var/tmp", "/dev/shm", TEMPORARY, str(Path.cwd().parent), "/"):
                note = "def attention_weights(query, key):\\n"
                note += "    return (query @ key.mT / query.shape[-1] ** 0.5).softmax(-1)\\n"
                tries(Path(folder, f"{TOKEN}-note").write_text, note)
            return wrong(query, key)
        """,
        promised="namespaces",
    ),
    Submission(
        "reads_the_note",
        "The answer that another submission left.",
        """
        def steal():
            for folder in ("/tmp", "/var/tmp", "/dev/shm", TEMPORARY, str(Path.cwd().parent), "/"):
                found = tries(Path(folder, f"{TOKEN}-note").read_text)
                if found:
                    return found
        """
        + WITH,
        promised="namespaces",
    ),
)
