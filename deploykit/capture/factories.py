"""Models named by a string, `package.module:factory`, and what to do instead of the other strings that people try.

Nothing is unpickled: a file of weights has no code, and one that has is not run. Imports no framework, so that a
mistyped name is told at once.
"""

from __future__ import annotations

import ast
import importlib
import importlib.util
import inspect
import sys
from pathlib import Path
from typing import Any

from deploykit.contract.errors import UsageError
from deploykit.contract.near import near, question

FORM = "'package.module:factory'"
_WEIGHTS = (".pt", ".pth", ".bin", ".ckpt", ".safetensors")
_NO_MODULES = {
    ".onnx": (
        "is an ONNX file, which an export makes; deploykit exports the PyTorch model that it was made of",
        "`deploykit lint {text}` checks the file; to export, name the function that builds the nn.Module",
    ),
    ".pt2": (
        "is an exported program, and no module with a function",
        "put `def make(): return torch.export.load({text!r})` into my_model.py, and give my_model:make",
    ),
    **dict.fromkeys(
        (".tflite", ".mlpackage", ".mlmodel", ".engine", ".xml", ".h5", ".keras", ".pb"),
        (
            "is a model of another framework or runtime; deploykit exports PyTorch models",
            "name the function that builds the nn.Module, as package.module:function",
        ),
    ),
}


def made_by(text: str) -> Any:
    """What the factory returns, or the object that is named where it is no function.

    Args:
        text: `package.module:factory`, found in the working directory too.
    Raises:
        UsageError: it is of another form, cannot be imported, is not there, or failed; the hint is the next step.
    """
    module_name, _, attribute = text.partition(":")
    if not module_name or not attribute or module_name.endswith(".py") or "/" in module_name:
        raise _malformed(text, module_name, attribute)
    found: Any = _imported(module_name, text)
    for step in attribute.split("."):
        if not hasattr(found, step):
            raise _absent(text, module_name, attribute, found)
        found = getattr(found, step)
    is_model = hasattr(found, "forward") or hasattr(found, "graph_signature")
    if not callable(found) or (is_model and not isinstance(found, type)):
        return found
    try:
        return found()
    except Exception as e:
        hint = None
        if isinstance(found, type) or _needs_arguments(found):
            hint = f"write a function without arguments that makes it: def make(): return {attribute}(...)"
        raise UsageError(f"{text!r} failed when called: {type(e).__name__}: {e}", hint=hint) from e


def _needs_arguments(function: Any) -> bool:
    try:
        inspect.signature(function).bind()
    except TypeError:
        return True
    except ValueError:  # written in C, without a signature
        return False
    return False


def _malformed(text: str, module_name: str, attribute: str) -> UsageError:
    """Why a string names no factory, and what would."""
    path = Path(module_name)
    if path.suffix == ".py":
        named = f"{path.stem}:{attribute or _first_function(path) or 'FACTORY'}"
        where = f" in the folder {path.parent}" if str(path.parent) != "." else ""
        return UsageError(f"{text!r} is a file; a module is named, without .py", hint=f"give {named}{where}")
    for suffix, (what, hint) in _NO_MODULES.items():
        if path.suffix == suffix:
            return UsageError(f"{text!r} {what}", hint=hint.format(text=text))
    if path.suffix in _WEIGHTS:
        absent = "" if path.is_file() else "; nor is there such a file"
        return UsageError(
            f"{text!r} is a file of weights, which has no code of a model (and is not unpickled){absent}",
            hint="write a function that builds the model and loads them, `def make(): model = Net();"
            f" model.load_state_dict(torch.load({text!r}, weights_only=True)); return model` in my_model.py,"
            " and give my_model:make",
        )
    if "/" in module_name and path.with_suffix(".py").is_file():
        named = f"{path.name}:{attribute or _first_function(path.with_suffix('.py')) or 'FACTORY'}"
        where = f" in the folder {path.parent}" if str(path.parent) != "." else ""
        return UsageError(f"{text!r} is a path; a module is named by its name alone", hint=f"give {named}{where}")
    file = Path(f"{module_name.replace('.', '/')}.py")
    hint = f"such as {module_name}:{_first_function(file) or 'make'}" if file.is_file() else "such as my_model:make"
    return UsageError(f"{text!r} is not of the form {FORM}", hint=f"{hint}, a function that returns the model")


def _absent(text: str, module_name: str, attribute: str, owner: Any) -> UsageError:
    public = [name for name in vars(owner) if not name.startswith("_") and callable(getattr(owner, name, None))]
    own = [name for name in public if getattr(getattr(owner, name), "__module__", None) == module_name] or public
    there = f"it has {', '.join(own[:8])}" if own else "it has no functions"
    found = [f"{module_name}:{name}" for name in near(attribute, own)]
    return UsageError(f"{text!r}: {module_name} has no {attribute!r}", hint=question(found, there))


def _imported(module_name: str, text: str) -> Any:
    """Import a module, from the working directory too."""
    here = str(Path.cwd())
    added = here not in sys.path
    if added:
        sys.path.insert(0, here)
    try:
        importlib.invalidate_caches()
        return importlib.import_module(module_name)
    except Exception as e:
        message = f"{text!r} cannot be imported: {type(e).__name__}: {e}"
        raise UsageError(message, hint=_import_hint(module_name, text, e)) from e
    finally:
        if added and here in sys.path:
            sys.path.remove(here)


def _import_hint(module_name: str, text: str, error: Exception) -> str:
    missing = error.name if isinstance(error, ModuleNotFoundError) else None
    if missing is None:
        return f"python -c 'import {module_name}' shows where it fails"
    if missing != module_name.split(".", maxsplit=1)[0] and not module_name.startswith(f"{missing}."):
        return f"{module_name} was found and needs {missing}: install it where deploykit is installed"
    here = near(module_name, [path.stem for path in Path.cwd().glob("*.py")])
    attribute = text.partition(":")[2]
    otherwise = "run from the folder that holds the module, or install its package"
    return question([f"{name}:{attribute}" for name in here], otherwise)


def _first_function(file: Path) -> str | None:
    """The function without required arguments that a file defines last, as its factory often is; nothing is run."""
    try:
        tree = ast.parse(file.read_text(encoding="utf-8"))
    except (OSError, SyntaxError, ValueError):
        return None
    functions = [node for node in tree.body if isinstance(node, ast.FunctionDef) and not node.name.startswith("_")]
    free = [node.name for node in functions if len(node.args.args) == len(node.args.defaults)]
    return free[-1] if free else None
