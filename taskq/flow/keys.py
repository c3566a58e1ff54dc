"""Key expressions: which bucket, slot or claim a call belongs to, from its arguments.

An expression is a small part of Python, read with the parser and never evaluated as code:
`args[0]`, `kwargs['tenant']`, a parameter's name, subscripts of these, constants, and tuples.
`kwargs.tenant` is another way to write `kwargs['tenant']`: a dot looks into maps, never at
attributes of objects.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from taskq.errors import ConfigError, KeyExpressionFailed

if TYPE_CHECKING:
    import ast
    import inspect

_MAX_KEY: Final = 100
_MAX_EXPRESSION: Final = 500


class Key:
    """What makes a key out of a call's arguments.

    Attributes:
        text: The expression, or the callable's name.
    """

    __slots__ = ("_call", "_tree", "text")

    def __init__(self, text: str, tree: "ast.expr | None", call: Callable[..., Any] | None) -> None:
        self.text = text
        self._tree = tree
        self._call = call

    def __repr__(self) -> str:
        return f"<Key {self.text}>"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Key) and (self.text, self._call) == (other.text, other._call)

    def __hash__(self) -> int:
        return hash(self.text)

    def value(
        self, args: Sequence[Any], kwargs: Mapping[str, Any], signature: "inspect.Signature | None"
    ) -> str:
        """Return the key of a call.

        Args:
            args: Positional arguments, without the task itself.
            kwargs: Keyword arguments.
            signature: Of the function, without the task; parameters can be named where it fits.

        Raises:
            KeyExpressionFailed: If it cannot be made from these arguments.
        """
        try:
            if self._call is not None:
                found = self._call(*args, **kwargs)
            elif self._tree is not None:
                found = _evaluate(self._tree, _Scope(args, kwargs, signature))
            return canonical(found)
        # The expression meets whatever was sent, and a callable is the user's own code.
        except Exception as error:
            raise KeyExpressionFailed(self.text, error) from error


class _Scope:
    def __init__(
        self, args: Sequence[Any], kwargs: Mapping[str, Any], signature: "inspect.Signature | None"
    ) -> None:
        self._args = args
        self._kwargs = kwargs
        self._signature = signature

    def find(self, name: str) -> Any:
        if name == "args":
            return self._args
        if name == "kwargs":
            return self._kwargs
        if self._signature is None:
            raise NameError(f"no argument {name!r}")
        bound = self._signature.bind(*self._args, **self._kwargs)
        bound.apply_defaults()
        if name not in bound.arguments:
            raise NameError(f"no parameter {name!r}")
        return bound.arguments[name]


def make_key(option: str, value: Any) -> Key | None:
    """Return the key of an option: an expression or a callable; None stays None.

    Raises:
        ConfigError: If an expression holds more than names, subscripts, constants and tuples.
    """
    if value is None:
        return None
    if callable(value):
        name = getattr(value, "__qualname__", type(value).__name__)
        return Key(name, None, value)
    if not isinstance(value, str) or not 0 < len(value) <= _MAX_EXPRESSION:
        raise ConfigError(f"{option} is {value!r:.60}; use an expression or a callable")
    # Imported by those who write an expression: `import taskq` stays light.
    import ast

    try:
        tree = ast.parse(value.strip(), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise ConfigError(f"{option} {value!r:.60} cannot be read: {error}") from error
    _check(option, value, tree)
    return Key(value.strip(), tree, None)


def _check(option: str, text: str, node: "ast.expr") -> None:
    import ast

    if isinstance(node, ast.Name | ast.Constant):
        return
    if isinstance(node, ast.Subscript) and not isinstance(node.slice, ast.Slice):
        _check(option, text, node.value)
        _check(option, text, node.slice)
    elif isinstance(node, ast.Attribute) and _is_below_kwargs(node.value):
        _check(option, text, node.value)
    elif isinstance(node, ast.Tuple | ast.List):
        for item in node.elts:
            _check(option, text, item)
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        _check(option, text, node.operand)
    else:
        raise ConfigError(
            f"{option} {text!r:.60} holds more than names, subscripts, constants and tuples; "
            "use a callable for anything else"
        )


def _is_below_kwargs(node: "ast.expr") -> bool:
    """Return whether a dot behind a node can look into a map: arguments may be anything else."""
    import ast

    if isinstance(node, ast.Attribute):
        return _is_below_kwargs(node.value)
    return isinstance(node, ast.Name) and node.id == "kwargs"


def _evaluate(node: "ast.expr", scope: _Scope) -> Any:
    import ast

    if isinstance(node, ast.Name):
        return scope.find(node.id)
    if isinstance(node, ast.Constant):
        return node.value
    if isinstance(node, ast.Subscript):
        return _evaluate(node.value, scope)[_evaluate(node.slice, scope)]
    if isinstance(node, ast.Attribute):
        return _field(_evaluate(node.value, scope), node.attr)
    if isinstance(node, ast.UnaryOp):
        return -_evaluate(node.operand, scope)
    if isinstance(node, ast.Tuple | ast.List):
        return [_evaluate(item, scope) for item in node.elts]
    raise TypeError(f"cannot evaluate {ast.dump(node):.60}")


def _field(value: Any, name: str) -> Any:
    # Not getattr: an expression must not reach into whatever an argument's class offers.
    if not isinstance(value, Mapping):
        raise TypeError(f".{name} asks for a map, not a {type(value).__name__}")
    return value[name]


def canonical(value: Any) -> str:
    """Return a value as the text that stands for it: equal values alone have equal texts.

    Long ones are hashed. `1` and `"1"` differ, a tuple and a list do not, nor do maps that differ
    in order only.

    Raises:
        TypeError: If the value has no such form.
        ValueError: If it is a number that is none, or refers to itself.
    """
    import json

    text = json.dumps(
        value,
        sort_keys=True,
        separators=(",", ":"),
        ensure_ascii=False,
        allow_nan=False,
        default=_plain,
    )
    data = text.encode("utf-8", "surrogatepass")
    if len(data) <= _MAX_KEY and text.isprintable():
        return text
    import hashlib

    return "#" + hashlib.sha256(data).hexdigest()


def _plain(value: Any) -> Any:
    if isinstance(value, bytes | bytearray):
        return {"bytes": bytes(value).hex()}
    # Dates, decimals and UUIDs, which travel as arguments: their text says all of them.
    if type(value).__module__ in ("datetime", "decimal", "uuid"):
        return {type(value).__name__: str(value)}
    raise TypeError(f"a {type(value).__name__} is no key; use text, numbers, lists or maps")


def cell_name(kind: str, task: str, key: str) -> str:
    """Return the name of a store's cell; the length keeps `a:b` + `c` from being `a` + `b:c`."""
    return f"{kind}:{len(task)}:{task}:{key}"


def split_cell(name: str) -> tuple[str, str, str]:
    """Read `cell_name`'s form: (kind, task, key).

    Raises:
        ValueError: If it is none.
    """
    kind, length, rest = name.split(":", 2)
    end = int(length)
    if rest[end : end + 1] != ":":
        raise ValueError(f"not a cell: {name!r:.80}")
    return kind, rest[:end], rest[end + 1 :]


def compute_keys(
    keys: Mapping[str, Key | None],
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    signature: "inspect.Signature | None",
) -> dict[str, str]:
    """Return the keys of a call, for the header.

    Args:
        keys: `FlowSpec.keys`.
        args: Positional arguments.
        kwargs: Keyword arguments.
        signature: Of the function, without the task.

    Raises:
        KeyExpressionFailed: If one cannot be made from these arguments.
    """
    return {
        kind: (key or ALL_ARGUMENTS).value(args, kwargs, signature) for kind, key in keys.items()
    }


def _all_arguments(*args: Any, **kwargs: Any) -> Any:
    return [list(args), kwargs]


ALL_ARGUMENTS: Final = Key("all arguments", None, _all_arguments)


def read_keys(header: Any, wanted: Sequence[str]) -> dict[str, str] | None:
    """Return the keys that a message carries; None when the header lacks one, or is not readable.

    Args:
        header: Value of the header `taskq-keys`; anyone may have set it.
        wanted: Kinds that the task declares.
    """
    if not isinstance(header, dict):
        return None if wanted else {}
    for kind in wanted:
        value = header.get(kind)
        if not isinstance(value, str) or len(value) > 2 * _MAX_KEY:
            return None
    return header
