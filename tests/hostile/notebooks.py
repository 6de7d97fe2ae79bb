"""Submissions whose file is the attack: archives, links, notebooks that are not what they seem, names."""

import json
import os
import struct
import warnings
import zipfile
import zlib
from typing import Any

from .notebook import CHAPTER, document, write_notebook
from .place import Place
from .submission import FUSES, Submission

BAD = "import torch\n\ndef attention_weights(query, key):\n    return torch.zeros(len(query), len(key))\n"
UNREAD = "zip|entries|notebook|UTF|read|larger|link|encrypt"


def archive(place: Place, learner: str) -> zipfile.ZipFile:
    return zipfile.ZipFile(place.submissions / f"{learner}.zip", "w", zipfile.ZIP_DEFLATED)


def bad_notebook(**more: Any) -> str:
    return json.dumps(document(BAD, **more))


def slips(place: Place, learner: str) -> None:
    with archive(place, learner) as file:
        for outside in (
            "../../forged.ipynb",
            f"{place.home}/forged.ipynb",
            "..\\..\\forged.ipynb",
            "a/../../../forged",
        ):
            file.writestr(outside, bad_notebook())
        file.writestr(f"../{learner}_neighbour_{CHAPTER}.ipynb", bad_notebook())
        file.writestr("/etc/hostile-forged", "forged")
        file.writestr(f"{CHAPTER}.ipynb", bad_notebook())


def links_in_a_zip(place: Place, learner: str) -> None:
    with archive(place, learner) as file:
        for name, target in ((f"{CHAPTER}.ipynb", place.notebook(f"{learner}_neighbour")), ("home", place.home)):
            link = zipfile.ZipInfo(name)
            link.create_system, link.external_attr = 3, 0o120777 << 16
            file.writestr(link, str(target))
        file.writestr("home/forged.ipynb", bad_notebook())


def bombs_a_zip(place: Place, learner: str) -> None:
    with archive(place, learner) as file, file.open(f"{CHAPTER}.ipynb", "w", force_zip64=True) as entry:
        for _ in range(2 << 10):
            entry.write(bytes(1 << 20))


def lies_about_its_size(place: Place, learner: str) -> None:
    """A gigabyte whose header says that it is ten bytes."""
    with archive(place, learner) as file, file.open(f"{CHAPTER}.ipynb", "w", force_zip64=True) as entry:
        for _ in range(1 << 10):
            entry.write(bytes(1 << 20))
    path = place.submissions / f"{learner}.zip"
    content = bytearray(path.read_bytes())
    at = content.rindex(b"PK\x01\x02")
    content[at + 24 : at + 28] = struct.pack("<I", 10)
    path.write_bytes(content)


def nests_zips(place: Place, learner: str) -> None:
    inner, name = bad_notebook().encode(), f"{CHAPTER}.ipynb"
    for _ in range(50):
        path = place.root / "inner.zip"
        with zipfile.ZipFile(path, "w") as file:
            file.writestr(name, inner)
            file.writestr(f"again-{name}", inner[:100])
        inner, name = path.read_bytes(), "inner.zip"
        path.unlink()
    (place.submissions / f"{learner}.zip").write_bytes(inner)


def overlaps_in_a_zip(place: Place, learner: str) -> None:
    """A thousand entries that all are the same ten megabytes."""
    body = bytes(10 << 20)
    packed = zlib.compress(body, 9)[2:-4]
    name = f"{CHAPTER}.ipynb".encode()
    local = struct.pack(
        "<4sHHHHHIIIHH", b"PK\3\4", 20, 0, 8, 0, 0, zlib.crc32(body), len(packed), len(body), len(name), 0
    )
    content = local + name + packed
    central = b""
    for n in range(1000):
        entry = f"{n:04}{CHAPTER}.ipynb".encode()
        central += struct.pack(
            "<4sHHHHHHIIIHHHHHII",
            *(b"PK\1\2", 20, 20, 0, 8, 0, 0, zlib.crc32(body), len(packed), len(body), len(entry), 0, 0, 0, 0, 0, 0),
        )
        central += entry
    end = struct.pack("<4sHHHHIIH", b"PK\5\6", 0, 0, 1000, 1000, len(central), len(content), 0)
    (place.submissions / f"{learner}.zip").write_bytes(content + central + end)


def encrypts_a_zip(place: Place, learner: str) -> None:
    with archive(place, learner) as file:
        file.writestr(f"{CHAPTER}.ipynb", bad_notebook())
    path = place.submissions / f"{learner}.zip"
    content = bytearray(path.read_bytes())
    for signature, flags in ((b"PK\3\4", 6), (b"PK\1\2", 8)):
        content[content.index(signature) + flags] |= 1
    path.write_bytes(content)


def odd_names_in_a_zip(place: Place, learner: str) -> None:
    with archive(place, learner) as file:
        for name in (
            "\x1b[2J.ipynb",
            "<script>alert(1)</script>.ipynb",
            "=cmd().ipynb",
            "con.ipynb",
            "x" * 60_000,
            "a//b",
        ):
            file.writestr(name, bad_notebook())
        with warnings.catch_warnings(action="ignore"):
            for _ in range(3):  # the same name three times
                file.writestr(f"{CHAPTER}.ipynb", bad_notebook())


def many_entries_in_a_zip(place: Place, learner: str) -> None:
    with archive(place, learner) as file:
        for n in range(60_000):
            file.writestr(f"{n}/", b"")


def is_no_zip(place: Place, learner: str) -> None:
    (place.submissions / f"{learner}.zip").write_bytes(b"PK\3\4" + os.urandom(1000))


def links_to_secrets(place: Place, learner: str) -> None:
    place.notebook(learner).symlink_to("/etc/passwd")


def links_to_its_neighbour(place: Place, learner: str) -> None:
    place.notebook(learner).symlink_to(place.notebook(f"{learner}_neighbour").name)


def links_its_folder(place: Place, learner: str) -> None:
    (place.submissions / learner).symlink_to("..", target_is_directory=True)


def is_a_pipe(place: Place, learner: str) -> None:
    os.mkfifo(place.notebook(learner))


def is_a_folder(place: Place, learner: str) -> None:
    place.notebook(learner).mkdir()


def has_hostile_metadata(place: Place, learner: str) -> None:
    ours = {"chapter": "../../x", "version": ["<script>"], "kind": {"a": 1}, "more": "x" * (1 << 22)}
    write_notebook(place.notebook(learner), BAD, metadata={"memcourse": ours, "kernelspec": 7})


def names_another_chapter(place: Place, learner: str) -> None:
    metadata = {"memcourse": {"chapter": "<script>alert(1)</script>/../../x"}}
    write_notebook(place.notebook(learner), BAD, metadata=metadata)


def has_odd_metadata(place: Place, learner: str) -> None:
    write_notebook(place.notebook(learner), BAD, metadata=[[["memcourse"]]])


def has_huge_output(place: Place, learner: str) -> None:
    whole = document(BAD)
    output = {"output_type": "stream", "name": "stdout", "text": "x" * (50 << 20)}
    whole["cells"][0]["outputs"] = [output]
    place.notebook(learner).write_text(json.dumps(whole))


def has_many_cells(place: Place, learner: str) -> None:
    write_notebook(place.notebook(learner), *["x = 1"] * 200_000, BAD)


def has_a_huge_cell(place: Place, learner: str) -> None:
    write_notebook(place.notebook(learner), BAD + "x = 1\n" * 1_000_000)


def has_nested_sources(place: Place, learner: str) -> None:
    write_notebook(place.notebook(learner), [[["import os"]], {"a": 1}, None], 7, None, BAD)


def is_nested_json(place: Place, learner: str) -> None:
    place.notebook(learner).write_text('{"cells": ' + "[" * 200_000 + "]" * 200_000 + "}")


def nests_parentheses(place: Place, learner: str) -> None:
    deep = "(" * 100_000 + ")" * 100_000
    write_notebook(place.notebook(learner), f"x = {deep}", f"{BAD}\ndef more():\n    return {deep}\n")


def nests_operators(place: Place, learner: str) -> None:
    """It parses, and whoever walks the tree recurses, in Python or in C."""
    chain = "+".join(["1"] * 50_000)
    signs = "-" * 50_000 + "1"
    calls = "f" + "()" * 20_000
    lines = [f"a = {chain}", f"b = {signs}", f"c = lambda: {calls}", "d = " + "x." * 20_000 + "x"]
    body = BAD.replace("    return", f"    e = {chain}\n    return")
    write_notebook(place.notebook(learner), *lines, body)


def folds_huge_constants(place: Place, learner: str) -> None:
    """Simple constants are computed where they stand: these have no end."""
    write_notebook(
        place.notebook(learner),
        "BIG = 10 ** 10 ** 10",
        "LONG = list(range(10 ** 12))",
        FUSES,
        BAD.replace("    return", "    BIG\n    LONG\n    return"),
    )


def has_null_bytes(place: Place, learner: str) -> None:
    write_notebook(
        place.notebook(learner), f"{BAD}\x00\n", "x = '\x00\ud800'", BAD.replace("torch.zeros", "torch.\x00")
    )


def uses_magics(place: Place, learner: str) -> None:
    lines = [f"%run {place.loot}", f"!touch {place.home}/forged", f"%%bash\ntouch {place.home}/forged", "%load_ext x"]
    call = f"get_ipython().system('touch {place.home}/forged')"
    write_notebook(place.notebook(learner), *lines, call, "%time " + call, BAD)


def has_wrong_encoding(place: Place, learner: str) -> None:
    place.notebook(learner).write_bytes(bad_notebook().encode("utf-16") + b"\xff\xfe\x00")


def is_named(name: str) -> Any:
    """A notebook under a hostile learner's name."""

    def build(place: Place, learner: str) -> None:
        write_notebook(place.submissions / f"{name.replace('LEARNER', learner)}_{CHAPTER}.ipynb", BAD)

    return build


def takes_its_neighbours_name(place: Place, learner: str) -> None:
    """The same name, to those who look at it, or who drop what cannot be seen."""
    for name in (f"{learner}_neighb\u043eur", f"{learner}_neighbour\u200b", f"{learner}_neighbour\u00ad"):
        write_notebook(place.submissions / name / f"{CHAPTER}.ipynb", BAD)


def imports_what_lies_beside(place: Place, learner: str) -> None:
    """Modules of its own that pose as what the runner imports."""
    folder = place.submissions / learner
    write_notebook(folder / f"{CHAPTER}.ipynb", "import helper_of_mine", BAD)
    for name in ("torch", "json", "memcourse", "struct", "sitecustomize", "conftest", "helper_of_mine"):
        (folder / f"{name}.py").write_text("raise SystemExit('forged')\n")


def brings_a_class_file(place: Place, learner: str) -> None:
    """The instructor's own files, in a learner's folder."""
    folder = place.submissions / learner
    write_notebook(folder / f"{CHAPTER}.ipynb", BAD)
    (folder / "class.toml").write_text('[points]\n"1.2" = 1e9\n')
    (folder / "results").mkdir()
    (folder / "results" / "forged.json").write_text('{"points": 99}')
    (folder / "index.html").write_text("<script>alert(1)</script>")


NOTEBOOKS = (
    Submission("zip_slips", "Entries that name places outside of where they are unpacked.", build=slips),
    Submission("zip_links", "Entries that are links, and entries that go through them.", build=links_in_a_zip),
    Submission("zip_bomb", "Two gigabytes of zeros in two megabytes.", build=bombs_a_zip, says=UNREAD),
    Submission("zip_that_lies", "A header that says less than is there.", build=lies_about_its_size, says=UNREAD),
    Submission("zip_in_a_zip", "Fifty archives, one in the other.", build=nests_zips, says=UNREAD),
    Submission("zip_overlap", "A thousand entries share ten megabytes.", build=overlaps_in_a_zip, says=UNREAD),
    Submission("zip_encrypted", "An archive with a password.", build=encrypts_a_zip, says=UNREAD),
    Submission("zip_names", "Names that no file should have, and one name thrice.", build=odd_names_in_a_zip),
    Submission("zip_of_folders", "Sixty thousand entries and no notebook.", build=many_entries_in_a_zip, says=UNREAD),
    Submission("zip_that_is_none", "Random bytes under the name of a zip.", build=is_no_zip, says=UNREAD),
    Submission("link_to_secrets", "A notebook that is a link to /etc/passwd.", build=links_to_secrets, says=UNREAD),
    Submission("link_to_a_neighbour", "A notebook that is a link to another's.", build=links_to_its_neighbour),
    Submission("link_of_a_folder", "A folder that is a link to the one above: it never ends.", build=links_its_folder),
    Submission("pipe", "A notebook that is a named pipe: reading it waits for ever.", build=is_a_pipe),
    Submission("folder", "A folder under the name of a notebook.", build=is_a_folder),
    Submission("metadata", "Metadata of wrong types, of megabytes, with paths.", build=has_hostile_metadata),
    Submission("metadata_chapter", "A chapter that is a path and a script.", build=names_another_chapter),
    Submission("metadata_list", "Metadata that is a list of lists.", build=has_odd_metadata, says=UNREAD),
    Submission("output", "Fifty megabytes of output.", build=has_huge_output),
    Submission("cells", "Two hundred thousand cells.", build=has_many_cells),
    Submission("lines", "A cell of a million lines.", build=has_a_huge_cell),
    Submission("sources", "Sources that are lists of lists, numbers and nothing.", build=has_nested_sources),
    Submission("json", "JSON two hundred thousand deep.", build=is_nested_json, says=UNREAD),
    Submission("parentheses", "Parentheses a hundred thousand deep.", build=nests_parentheses),
    Submission("operators", "Expressions that parse and are too deep for whoever walks them.", build=nests_operators),
    Submission("constants", "Constants that take for ever to compute.", build=folds_huge_constants),
    Submission("null_bytes", "Null bytes and lone surrogates in the source.", build=has_null_bytes),
    Submission("magics", "Magics and shell lines, which a notebook would run.", build=uses_magics),
    Submission("encoding", "Another encoding, cut short.", build=has_wrong_encoding, says=UNREAD),
    Submission("name_path", "A learner who is a path.", build=is_named("LEARNER..%2f..%2fx")),
    Submission("name_dots", "A learner who is a parent folder.", build=is_named("LEARNER..")),
    Submission("name_script", "A learner who is a script.", build=is_named("<script>alert('LEARNER')<!--")),
    Submission("name_formula", "A learner who is a formula.", build=is_named("=cmd('LEARNER')+1")),
    Submission("name_escape", "A learner who clears the screen.", build=is_named("\x1b[2J\x07\nLEARNER")),
    Submission("name_long", "A learner of more than two hundred letters.", build=is_named("LEARNER" + "x" * 200)),
    Submission("name_bytes", "A learner whose name is not UTF-8.", build=is_named("LEARNER\udcff\udcfe")),
    Submission("name_of_a_neighbour", "Look-alikes of another learner.", build=takes_its_neighbours_name),
    Submission("modules", "Modules beside the notebook that pose as others.", build=imports_what_lies_beside),
    Submission("class_file", "Its own class.toml, results and pages.", build=brings_a_class_file),
)
