"""The shape of the source: who may import whom, what each file must have, the kernel's ABI."""

from __future__ import annotations

import ast
import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import ringloop

if TYPE_CHECKING:
    from collections.abc import Iterator

REPO = Path(__file__).parent.parent
SRC = REPO / "src" / "ringloop"
ABI_HEADER = SRC / "_sys" / "uring.h"
KERNEL_HEADER = Path("/usr/include/linux/io_uring.h")

# From the top down: a module imports from its own layer and from those below.
LAYERS = (
    ("cli", "doctor", "__main__", "bench", "debug", "testing", "offload", "workers"),
    ("runner", "compat"),
    ("fs", "streams"),
    ("loop",),
    ("_net", "_tls", "_os"),
    ("_core",),
    ("_driver",),
    ("_sys",),
    ("_version", "_extras"),
)
RANK = {name: rank for rank, names in enumerate(LAYERS) for name in names}
FACADE = "ringloop"  # the package itself: made of all layers, imported by the topmost only

MAX_LINES = 600
MAX_COLUMNS = 100
PRAGMA = re.compile(r"\s+# (type: ignore|noqa)\b.*")  # not counted, as ruff has it


def sources(*suffixes: str) -> list[Path]:
    found = [p for p in SRC.rglob("*") if p.suffix in suffixes and "__pycache__" not in p.parts]
    assert found
    return sorted(found)


def shown(path: Path) -> str:
    return str(path.relative_to(REPO))


# -- imports -------------------------------------------------------------------------


def unit_of(path: Path) -> str:
    """The layered unit that a file belongs to: the package or module under ringloop/."""
    parts = path.relative_to(SRC).parts
    return parts[0] if len(parts) > 1 else path.stem


def is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test) in (
        "TYPE_CHECKING",
        "typing.TYPE_CHECKING",
    )


def python_imports(text: str) -> Iterator[str]:
    """Every module that Python source imports at run time, wherever the statement stands."""
    todo: list[ast.AST] = [ast.parse(text)]
    while todo:
        node = todo.pop()
        if isinstance(node, ast.If) and is_type_checking(node):
            todo.extend(node.orelse)
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative import: say the whole name"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        todo.extend(ast.iter_child_nodes(node))


CYTHON_FROM = re.compile(r"^\s*from\s+([.\w]+)\s+c?import\s+(\([^)]*\)|[^#\n(]+)", re.MULTILINE)
CYTHON_IMPORT = re.compile(r"^\s*c?import\s+([^#\n]+)", re.MULTILINE)
CYTHON_EXTERN = re.compile(r"^cdef extern from [^\n]*", re.MULTILINE)


def cython_imports(text: str) -> Iterator[str]:
    text = re.sub(r'"""(.|\n)*?"""', "", text)
    for module, names in CYTHON_FROM.findall(text):
        assert not module.startswith("."), "relative import: say the whole name"
        for name in re.sub(r"#[^\n]*", "", names).strip("() \n").split(","):
            if name.strip():
                yield f"{module}.{name.split()[0]}"
    for names in CYTHON_IMPORT.findall(text):
        yield from (name.split()[0] for name in names.split(","))


def imported_units(path: Path) -> Iterator[str]:
    """The units of ringloop that a file imports; FACADE for the package's own names."""
    text = path.read_text()
    names = python_imports(text) if path.suffix == ".py" else cython_imports(text)
    for name in names:
        package, _, rest = name.partition(".")
        if package == "ringloop":
            unit = rest.split(".")[0]
            yield unit if unit in RANK else FACADE


def test_every_file_belongs_to_a_layer() -> None:
    units = {unit_of(path) for path in sources(".py", ".pyx", ".pxd")} - {"__init__"}
    assert units - set(RANK) == set()


def test_imports_go_down_only() -> None:
    wrong = []
    edges = set()
    for path in sources(".py", ".pyx", ".pxd"):
        unit = unit_of(path)
        if unit == "__init__":
            continue  # the facade
        for imported in imported_units(path):
            edges.add((unit, imported))
            lowest = 0 if imported == FACADE else RANK[imported]
            if RANK[unit] > lowest:
                wrong.append(f"{shown(path)} imports ringloop.{imported}")
    assert wrong == []
    # The parser sees what there is to see.
    assert {("_net", "_driver"), ("loop", "_core"), ("_driver", "_sys"), ("cli", "bench")} <= edges


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("from ringloop._sys cimport posix", ["ringloop._sys.posix"]),
        ("from ringloop.x import (\n  A,  # why\n  B as C,\n)", ["ringloop.x.A", "ringloop.x.B"]),
        ("cimport cython, ringloop._core.loop as x", ["cython", "ringloop._core.loop"]),
        ("    from ringloop import cli", ["ringloop.cli"]),
        ('"""\nfrom ringloop import cli\n"""\nimport os', ["os"]),
        ('cdef extern from "Python.h":\n    int f()', []),
    ],
)  # fmt: skip
def test_the_parser_of_cython_imports(text: str, expected: list[str]) -> None:
    assert list(cython_imports(text)) == expected


def test_the_parser_of_python_imports_leaves_out_what_is_for_types_only() -> None:
    text = """
if TYPE_CHECKING:
    from ringloop import cli
else:
    from ringloop.loop import EventLoop
def f():
    import ringloop._core.loop
"""
    assert sorted(python_imports(text)) == ["ringloop._core.loop", "ringloop.loop.EventLoop"]


def test_importing_ringloop_imports_no_tools() -> None:
    code = "import sys, ringloop; print(*[m for m in sys.modules if m.startswith('ringloop.')])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    units = {name.split(".")[1] for name in done.stdout.split()}
    assert "loop" in units
    assert units & set(LAYERS[0]) == set()


# -- files ---------------------------------------------------------------------------


def test_files_are_short_enough_to_read_in_one_sitting() -> None:
    lengths = {shown(p): len(p.read_text().splitlines()) for p in sources(".py", ".pyx")}
    assert {name: n for name, n in lengths.items() if n >= MAX_LINES} == {}


def test_no_tabs_no_long_lines_no_trailing_space() -> None:
    wrong = []
    for path in sources(".py", ".pyx", ".pxd", ".pyi", ".c", ".h"):
        for number, line in enumerate(path.read_text().split("\n"), 1):
            if "\t" in line or len(PRAGMA.sub("", line)) > MAX_COLUMNS or line != line.rstrip():
                wrong.append(f"{shown(path)}:{number}")
    assert wrong == []


def has_docstring(path: Path) -> bool:
    text = path.read_text()
    if path.suffix == ".py":
        return bool(ast.get_docstring(ast.parse(text)))
    code = re.sub(r"\A(\s*#[^\n]*\n)*\s*", "", text)
    return code.startswith('"""')


def test_every_module_has_a_docstring() -> None:
    assert [shown(p) for p in sources(".py", ".pyx") if not has_docstring(p)] == []


def test_meson_knows_every_cython_file() -> None:
    text = (SRC / "meson.build").read_text()
    tables = re.findall(r"'([\w/]+)': \[([^\]]*)\]", text)
    modules = {
        f"{folder}/{name}.pyx" for folder, names in tables for name in re.findall(r"'(\w+)'", names)
    }
    assert modules == {str(p.relative_to(SRC)) for p in sources(".pyx")}
    declarations = set(re.findall(r"'([\w/]+\.pxd)'", text))
    expected = {str(p.relative_to(SRC)) for p in sources(".pxd") if p.stem != "__init__"}
    assert declarations - {p for p in declarations if p.endswith("__init__.pxd")} == expected


def test_the_version_is_the_same_everywhere() -> None:
    built = re.search(r"^\s*version: '([^']+)'", (REPO / "meson.build").read_text(), re.MULTILINE)
    assert built is not None
    assert ringloop.__version__ == built[1]
    assert ringloop.__version__ == importlib.metadata.version("ringloop")


# -- the kernel's ABI ----------------------------------------------------------------

# Our prefixes and the kernel's. Longer ones first.
PREFIXES = {
    "RL_CQE_BUFFER_SHIFT": "IORING_CQE_BUFFER_SHIFT",
    "RL_CQE_": "IORING_CQE_F_",
    "RL_SQE_": "IOSQE_",
    "RL_CANCEL_": "IORING_ASYNC_CANCEL_",
    "RL_OP_SUPPORTED": "IO_URING_OP_SUPPORTED",
    "RL_UNREGISTER_": "IORING_UNREGISTER_",
    "RL_": "IORING_",
}

# Structures that are not called as ours are, with "io_uring" for "rl".
STRUCTS = {
    "rl_sq_offsets": "io_sqring_offsets",
    "rl_cq_offsets": "io_cqring_offsets",
    "rl_timespec": "__kernel_timespec",
}
# Fields that have another name there.
FIELDS = {"rl_sqe.op_flags": "rw_flags", "rl_sqe.pad": "addr3"}
# Fields that were padding in the headers of older kernels.
YOUNG_FIELDS = {
    "rl_sq_offsets.user_addr",
    "rl_cq_offsets.user_addr",
    "rl_getevents_arg.min_wait_usec",
    "rl_buf_reg.flags",
}


def kernel_name(constant: str) -> str:
    for ours, theirs in PREFIXES.items():
        if constant.startswith(ours):
            return theirs + constant.removeprefix(ours)
    raise AssertionError(f"{constant} has no known prefix")


def fields(struct: str, text: str) -> list[str]:
    body = re.search(rf"^struct {struct} {{(.*?)^}};", text, re.MULTILINE | re.DOTALL)
    assert body is not None, f"no struct {struct}"
    declarations = re.sub(r"/\*.*?\*/", "", body[1], flags=re.DOTALL)
    return [
        re.sub(r"\[.*", "", name).split()[-1]
        for declaration in declarations.split(";")
        for name in declaration.split(",")
        if name.strip()
    ]


@pytest.fixture(scope="module")
def compiler() -> str:
    found = shutil.which(os.environ.get("CC", "cc"))
    if found is None:
        pytest.skip("there is no C compiler to compare the headers with")
    if not KERNEL_HEADER.exists():
        pytest.skip(f"there is no {KERNEL_HEADER} to compare with: install the kernel's headers")
    return found


def compile_c(compiler: str, source: str, folder: Path, *flags: str) -> str:
    """Compile; gives the standard output. Fails with what the compiler says."""
    path = folder / "check.c"
    path.write_text(source)
    args = [compiler, "-std=gnu11", f"-I{ABI_HEADER.parent}", *flags, str(path)]
    done = subprocess.run(args, capture_output=True, text=True, check=False, cwd=folder)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_our_copy_of_the_kernels_constants_and_structs_is_exact(
    compiler: str, tmp_path: Path
) -> None:
    """What these kernel headers have; older ones lack some. The names are compared, too."""
    ours = ABI_HEADER.read_text()
    constants = set(re.findall(r"\bRL_[A-Z0-9_]+(?= = |\s+0x|\s+0ULL)", ours))
    constants |= set(re.findall(r"#define (RL_\w+)", ours))
    assert len(constants) > 30
    kernel = compile_c(compiler, "#include <linux/io_uring.h>\n", tmp_path, "-E", "-dD")
    asserts = [
        f'_Static_assert({name} == {kernel_name(name)}, "{name}");'
        for name in sorted(constants)
        if re.search(rf"\b{kernel_name(name)}\b", kernel)
    ]
    compared = len(asserts)
    for struct in re.findall(r"^struct (\w+) {", ours, re.MULTILINE):
        theirs = STRUCTS.get(struct, struct.replace("rl_", "io_uring_", 1))
        if struct != "rl_probe":  # the kernel's ends with an array of no length
            asserts.append(
                f'_Static_assert(sizeof(struct {struct}) == sizeof(struct {theirs}), "{struct}");'
            )
        for field in fields(struct, ours):
            name = f"{struct}.{field}"
            if not field.startswith("resv") and name not in YOUNG_FIELDS:
                asserts.append(
                    f"_Static_assert(offsetof(struct {struct}, {field}) == "
                    f'offsetof(struct {theirs}, {FIELDS.get(name, field)}), "{name}");'
                )
    includes = "\n".join(f"#include {name}" for name in ('"uring.h"', "<linux/io_uring.h>"))
    compile_c(compiler, "\n".join([includes, *asserts, ""]), tmp_path, "-fsyntax-only")
    assert compared > 30
    assert len(asserts) > compared + 50


def test_the_comparison_of_the_headers_can_fail(compiler: str, tmp_path: Path) -> None:
    source = (
        '#include "uring.h"\n#include <linux/io_uring.h>\n'
        '_Static_assert(RL_OP_SEND == IORING_OP_RECV, "differs");\n'
    )
    with pytest.raises(AssertionError, match="differs"):
        compile_c(compiler, source, tmp_path, "-fsyntax-only")
