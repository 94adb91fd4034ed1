"""The last pass: drop what is unused, put constants first, and give nodes and constants their final names."""

from __future__ import annotations

from torch import Tensor, fx

from deploykit.capture.derivation import Derivation
from deploykit.capture.editor import Call, Editor, call_name


def finish(editor: Editor) -> None:
    """Rebuild the graph: inputs, then each constant once, then calls named after their ops in order.

    Names so depend on nothing but the structure: the same model gives the same names in every process.
    """
    editor.sweep()
    editor.constants = _with_plain_names(editor)
    graph = fx.Graph()
    env: dict[fx.Node, fx.Node] = {}
    attributes: dict[str, fx.Node] = {}
    for node in _ordered(editor.graph):
        if node.op == "get_attr" and str(node.target) in attributes:
            env[node] = attributes[str(node.target)]
            continue
        args, kwargs = fx.map_arg((node.args, node.kwargs), lambda n: env[n])
        env[node] = graph.create_node(node.op, node.target, args, kwargs, name=_name(node))
        env[node].meta = dict(node.meta)
        if node.op == "get_attr":
            attributes[str(node.target)] = env[node]
    editor.graph = graph


def _ordered(graph: fx.Graph) -> list[fx.Node]:
    """Inputs as they are, constants in the order of their first use, calls as they are."""
    rest = [n for n in graph.nodes if n.op not in ("placeholder", "get_attr")]
    constants = dict.fromkeys(source for node in rest for source in node.all_input_nodes if source.op == "get_attr")
    return [*(n for n in graph.nodes if n.op == "placeholder"), *constants, *rest]


def _name(node: Call) -> str | None:
    """The input's name, the op's name without its overload, or FX's own choice."""
    if node.op == "placeholder":
        return str(node.target)
    return call_name(node.target) if node.op == "call_function" else None


def _with_plain_names(editor: Editor) -> dict[str, Tensor]:
    """Give folded weights the plain names that their originals freed (`conv.folded_weight` -> `conv.weight`)."""
    constants: dict[str, Tensor] = {}
    derivations: dict[str, Derivation] = {}
    renamed: dict[str, str] = {}
    for name, value in editor.constants.items():
        plain = name.replace(".folded_", ".")
        renamed[name] = name if plain in editor.constants or plain in constants else plain
        constants[renamed[name]] = value
        if name in editor.derivations:
            derivations[renamed[name]] = editor.derivations[name]
    for node in editor.graph.nodes:
        if node.op == "get_attr":
            node.target = renamed[str(node.target)]
    editor.derivations = derivations
    return constants
