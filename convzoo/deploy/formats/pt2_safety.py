"""A .pt2 archive is unpickled and evaluated by PyTorch in places; what could run code is refused or dropped first.

`torch.export.load` unpickles custom objects and example inputs, passes symbolic sizes to SymPy's parser, looks
functions up by name from `torch` on, and compiles guards from text. Ours hold none of that but plain ATen operators
and sizes.
"""

import ast
import io
import json
import re
import zipfile

from convzoo.deploy.metadata import digest
from convzoo.errors import ConvzooError
from convzoo.plain import JsonObject, JsonValue

ROOT = "convzoo"
DOCUMENT = "extra/convzoo.json"
GRAPH, EXAMPLES = "models/model.json", "data/sample_inputs/model.pt"
CONFIGS = {"data/weights/": "model_weights_config.json", "data/constants/": "model_constants_config.json"}
MEMBERS = re.compile(
    r"archive_format|archive_version|byteorder|\.data/(version|serialization_id)|extra/convzoo\.json|models/model\.json"
    r"|data/sample_inputs/model\.pt|data/weights/(model_weights_config\.json|weight_\d+)"
    r"|data/constants/(model_constants_config\.json|tensor_\d+)"
)
TARGETS = re.compile(
    r"torch\.ops\.(aten\.\w+\.\w+|torchvision\.nms\.default)"
    r"|_operator\.(getitem|add|sub|mul|floordiv|truediv|mod|pow|neg|eq|ne|lt|le|gt|ge|and_|or_)|torch\.sym_\w+"
)
# Where the graph may hold text at all, beyond these it is names; a message or a mode of rounding among arguments.
NAME, KEY, TEXT = re.compile(r"[\w.]{0,500}"), re.compile(r"[\w.*+]{0,500}"), re.compile(r"[\w.+<= ]{0,100}")
REFUSED = {"as_operator", "as_custom_obj", "as_graph", "as_string_to_argument", "custom_obj", "token", "class_fqn"}
FUNCTIONS = {
    "Symbol",       "Integer",           "Rational",       "Float",      "Add",
    "Mul",          "Pow",               "Max",            "Min",        "Mod",
    "PythonMod",    "FloorDiv",          "CleanDiv",       "CeilDiv",    "CeilToInt",
    "FloorToInt",   "IntTrueDiv",        "FloatTrueDiv",   "ToFloat",    "TruncToInt",
    "TruncToFloat", "ModularIndexing",   "Where",          "Identity",   "And",
    "Or",           "Not",               "Equality",       "Unequality", "GreaterThan",
    "LessThan",     "StrictGreaterThan", "StrictLessThan",
}  # fmt: skip


def members(data: bytes) -> dict[str, bytes]:
    """Return an archive's files by their path below its root. Raises ConvzooError for files that ours never have."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            entries = archive.infolist()
            if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
                raise ConvzooError("a zip file, but not a .pt2 archive: its files are compressed")
            if sum(entry.file_size for entry in entries) > len(data):
                raise ConvzooError("not a .pt2 archive: its files overlap")
            contents = {entry.filename.partition("/")[2]: archive.read(entry) for entry in entries}
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError, RuntimeError, EOFError) as error:
        raise ConvzooError(f"not a whole .pt2 archive ({error})") from None
    if DOCUMENT not in contents:
        raise ConvzooError("no .pt2 archive that convzoo exported: its metadata is missing")
    strange = [name for name in contents if not MEMBERS.fullmatch(name)]
    if strange or len(contents) != len(entries) or len({e.filename.partition("/")[0] for e in entries}) != 1:
        raise ConvzooError(
            f"holds what no export of convzoo does: {(strange or ['a file twice'])[0][:80]!r}; it is not opened"
        )
    return contents


def archive(files: dict[str, bytes]) -> bytes:
    """Write an archive anew, so that what PyTorch reads is what was checked."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as out:
        for name, content in files.items():
            out.writestr(zipfile.ZipInfo(f"{ROOT}/{name}"), content)
    return buffer.getvalue()


def cleaned(files: dict[str, bytes]) -> dict[str, bytes]:
    """Check every file that PyTorch would interpret, and drop example inputs, guards and notes. Raises ConvzooError."""
    try:
        graph = json.loads(files[GRAPH])
        configs = {f"{folder}{name}": json.loads(files[f"{folder}{name}"]) for folder, name in CONFIGS.items()}
        graph["guards_code"] = []
        graph["graph_module"]["treespec_namedtuple_fields"] = {}
        for node in graph["graph_module"]["graph"]["nodes"]:
            _clean_node(node)
        for plain in (graph, *configs.values()):
            _check(plain)
        for folder, name in CONFIGS.items():
            for entry in configs[f"{folder}{name}"]["config"].values():
                if entry["use_pickle"] is not False or not len(files[f"{folder}{entry['path_name']}"]):
                    raise ConvzooError("holds pickled objects; it is not opened")
    except (KeyError, TypeError, ValueError, AttributeError, SyntaxError, RecursionError) as error:
        raise ConvzooError(f"its graph is not as PyTorch writes it ({type(error).__name__}: {error})") from None
    return {**files, GRAPH: json.dumps(graph).encode(), EXAMPLES: b""}


def archive_digest(files: dict[str, bytes]) -> str:
    """Return the digest of all files but the one that holds it."""
    parts = ([name.encode(), content] for name, content in sorted(files.items()) if name != DOCUMENT)
    return digest(part for pair in parts for part in pair)


def _clean_node(node: JsonObject) -> None:
    """Drop the notes on where a node comes from, with paths of the machine that wrote it, and texts of assertions."""
    node["metadata"] = {}
    if node["target"] == "torch.ops.aten._assert_scalar.default":
        for given in node["inputs"]:
            if "as_string" in given["arg"]:
                given["arg"]["as_string"] = ""


def _check(value: JsonValue, key: str = "") -> None:
    """Walk through JSON and refuse every text that is not known to be harmless. Raises ConvzooError."""
    if isinstance(value, dict):
        for inner, part in value.items():
            if (inner in REFUSED and part) or not KEY.fullmatch(inner):
                raise ConvzooError(f"its graph holds {inner[:80]!r}; it is not opened")
            _check(part, inner)
    elif isinstance(value, list):
        for part in value:
            _check(part, key)
    elif isinstance(value, str):
        if key == "expr_str":
            is_fine = len(value) < 2000 and _is_size(ast.parse(value, mode="eval").body)
        elif key in ("in_spec", "out_spec"):
            is_fine = _is_plain_structure(json.loads(value))
        elif key == "target":
            is_fine = TARGETS.fullmatch(value)
        else:
            is_fine = (TEXT if key in ("as_string", "torch_version") else NAME).fullmatch(value)
        if not is_fine:
            raise ConvzooError(
                f"its graph holds {key} {value[:80]!r}, which no export of convzoo does; it is not opened"
            )


def _is_size(node: ast.AST) -> bool:
    """Tell whether an expression is arithmetic of symbols and numbers as SymPy prints it, and nothing else."""
    if isinstance(node, ast.Call):
        inner = [*node.args, *(keyword.value for keyword in node.keywords)]
        return isinstance(node.func, ast.Name) and node.func.id in FUNCTIONS and all(map(_is_size, inner))
    if isinstance(node, ast.UnaryOp):
        return isinstance(node.op, ast.USub) and _is_size(node.operand)
    if isinstance(node, ast.Name):
        return node.id in ("true", "false", "int_oo", "oo")
    if isinstance(node, ast.Constant):
        return isinstance(node.value, int | float) or (isinstance(node.value, str) and bool(NAME.fullmatch(node.value)))
    return False


def _is_plain_structure(spec: JsonValue) -> bool:
    """Tell whether a pytree's description is of tuples, lists and dictionaries only."""
    if isinstance(spec, list):
        return len(spec) == 2 and isinstance(spec[0], int) and _is_plain_structure(spec[1])
    return (
        spec["type"] in (None, "builtins.tuple", "builtins.list", "builtins.dict")
        and spec["context"] in (None, "null", "[]")
        and all(map(_is_plain_structure, spec["children_spec"]))
    )
