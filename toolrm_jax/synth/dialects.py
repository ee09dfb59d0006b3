"""Tool calls as models write them: from the common dialects to one form.

    <tool_call>{"name": "f", "arguments": {}}</tool_call>    Hermes, Qwen
    {"name": "f", "arguments": {}}   [{...}, {...}]          bare JSON
    {"name": "f", "parameters": {}}; {...}                   Llama 3, also after <|python_tag|>
    <function=f>{}</function>                                Llama 3.1
    [f(a=1), g(b="x")]                                       Python calls: Llama 3.2 and 4, Gorilla;
                                                             one a line, or print(f(a=1)): Gemma
    ```json {"name": "f", "arguments": {}} ```               any of the last in fences, of one line
                                                             or several
    [TOOL_CALLS][{...}]   [TOOL_CALLS]f[ARGS]{}              Mistral, old and new
    <|tool_call|>[{...}]   <tool_call>[{...}]                Granite 3, Phi-4
    <function_call> {...}                                    Granite 20B
    {"tool_calls": [{...}]}                                  xLAM

The first two are `tool_calls.parse_calls`; the others are for answers of models alone, since they
are wrong forms for a model that was told to write the first. A `<think>` part before an answer is
not part of it, nor is a token after it that ends a turn (`<|im_end|>`). Arguments that are empty
("", null) are {}, and so are those that a tagged call has none of. Nothing is guessed: text after a
call, positional arguments, a missing tag, an argument that is no literal, a call beside something
that is none, make the whole answer None. In Python's form tools and parameters may have names that
Python does not allow (`from`, `max-results`): the schema has them, so the model must write them.
Dialects whose values carry no types (Qwen3-Coder's and GLM's XML) are left to the server's parser.

>>> read_calls('[area(base=3, unit="cm")]')
[{'name': 'area', 'arguments': {'base': 3, 'unit': 'cm'}}]
>>> read_calls('[TOOL_CALLS]area[ARGS]{"base": 3}')
[{'name': 'area', 'arguments': {'base': 3}}]
>>> read_calls("Which unit do you want?") is None
True
"""

import ast
import json
import keyword
import re
import warnings
from typing import Any

from toolrm_jax.examples import Call
from toolrm_jax.literals import read_json
from toolrm_jax.tool_calls import parse_calls

_THOUGHT = re.compile(r"\s*<think>(.*?)</think>", re.DOTALL)
# What a server leaves in the text that does not know its model's end of a turn.
_ENDS = (
    *("<|im_end|>", "<|endoftext|>", "<|eot_id|>", "<|eom_id|>", "<|end_of_text|>", "<|end|>"),
    *("</s>", "<end_of_turn>"),
)


def read_calls(text: str) -> list[Call] | None:
    """The calls that a model's answer makes: [] for an empty one, None where it does not parse."""
    text = words_said(text)
    calls = parse_calls(text)
    if calls is not None:
        return calls
    for parse in DIALECTS.values():
        try:
            found = parse(text)
        except ValueError:
            return None
        if found is not None:
            return found
    return None


def words_said(text: str) -> str:
    """The answer between the model's thoughts and the tokens that end its turn.

    Thoughts without an end stay.
    """
    text = text.rstrip()
    while text.endswith(_ENDS):
        text = text[: text.rindex("<")].rstrip()
    # Some templates open the thought in the prompt, so that the answer holds its end alone.
    head, closed, rest = text.partition("</think>")
    if closed and "<think>" not in head:
        return rest.strip()
    return _THOUGHT.sub("", text, count=1).strip() if _THOUGHT.match(text) else text.strip()


def given_arguments(arguments: Any) -> Any:
    """The arguments of a call; {} where a model or its server writes that it gives none."""
    empty = isinstance(arguments, str) and arguments.strip() in ("", "null")
    return {} if arguments is None or empty else arguments


def _known(value: Any, arguments: str = "arguments") -> list[Call]:
    """Calls from JSON whose arguments, if any, stand under the given key; ValueError if it is none.

    That an object without arguments is a call, a mark around it must tell.
    """
    items = value if isinstance(value, list) else [value]
    for item in items:
        if not isinstance(item, dict) or set(item) - {"name", arguments, "type", "id"}:
            raise ValueError("not an object with a name and arguments")
    plain = [
        {"name": item.get("name"), "arguments": given_arguments(item.get(arguments))}
        for item in items
    ]
    calls = parse_calls(plain)
    if calls is None:
        raise ValueError("not calls")
    return calls


def _json_calls(text: str) -> list[Call]:
    return _known(read_json(text))


# Marked by a tag ---------------------------------------------------------------------------------


def _parse_mistral(text: str) -> list[Call] | None:
    """[TOOL_CALLS] and a list, or one name[ARGS]{...} for each call; words may stand before."""
    _, tag, rest = text.partition("[TOOL_CALLS]")
    if not tag:
        return None
    if rest.lstrip()[:1] == "[":
        return _json_calls(rest)
    return [_named(part) for part in rest.split("[TOOL_CALLS]")]


_NAMED = re.compile(r"\s*([\w.-]+)\s*(?:\[CALL_ID\][\w-]+)?\[ARGS\](.*)", re.DOTALL)


def _named(part: str) -> Call:
    if not (found := _NAMED.fullmatch(part)):
        raise ValueError("not name[ARGS]{...}")
    return _known({"name": found[1], "arguments": read_json(found[2])})[0]


def _parse_granite(text: str) -> list[Call] | None:
    """A tag and a list of calls; Phi closes it."""
    for tag, end in (("<|tool_call|>", "<|/tool_call|>"), ("<tool_call>", "</tool_call>")):
        before, found, rest = text.partition(tag)
        if found and rest.lstrip()[:1] == "[" and not before.strip():
            return _json_calls(rest.strip().removesuffix(end))
    return None


def _parse_function_call(text: str) -> list[Call] | None:
    """<function_call> before each call."""
    if not text.startswith("<function_call>"):
        return None
    return [_known(read_json(part))[0] for part in text.split("<function_call>")[1:]]


_FUNCTION = re.compile(r"<function=([\w.-]+)>(.*?)</function>\s*", re.DOTALL)


def _parse_llama_tags(text: str) -> list[Call] | None:
    """<function=name>{...}</function>, one or several, and nothing else."""
    if not text.startswith("<function="):
        return None
    if _FUNCTION.sub("", text):
        raise ValueError("text beside <function=...>")
    return [
        _known({"name": name, "arguments": read_json(body)})[0]
        for name, body in _FUNCTION.findall(text)
    ]


_TAGGED = re.compile(r"<tool_call>(.*?)</tool_call>\s*", re.DOTALL)


def _parse_hermes(text: str) -> list[Call] | None:
    """Hermes's tags, where `parse_calls` does not take what is in them: calls without arguments."""
    start = text.find("<tool_call>")
    if start < 0:
        return None
    if _TAGGED.sub("", text[start:]):
        raise ValueError("text beside or after <tool_call>...</tool_call>")
    return [call for body in _TAGGED.findall(text, start) for call in _known([read_json(body)])]


# Fences, JSON with other keys, Python ------------------------------------------------------------

_LANGUAGES = ("", "json", "tool_call", "tool_code", "python")
# In one line only a language that is known is told from a call: ```f(a=1)```.
_FENCE = re.compile(
    rf"```(?:([\w-]*)[ \t]*\n|(?:{'|'.join(filter(None, _LANGUAGES))})\b|)(.*?)```", re.DOTALL
)


def _parse_fenced(text: str) -> list[Call] | None:
    """Fenced calls, one block or several; words may stand before the first only, as with tags."""
    start = text.find("```")
    if start < 0:
        return None
    blocks = _FENCE.findall(text, start)
    if not blocks or _FENCE.sub("", text[start:]).strip():
        raise ValueError("text beside or after the fences")
    calls: list[Call] = []
    for language, body in blocks:
        found = read_calls(body) if language in _LANGUAGES else None
        if not found:
            raise ValueError("a fenced block that is no call")
        calls += found
    return calls


def _parse_objects(text: str) -> list[Call] | None:
    """Llama's parameters, several objects with ; between them, and xLAM's tool_calls."""
    text = text.removeprefix("<|python_tag|>").lstrip()
    if text[:1] != "{":
        return None if not text.startswith('[{"') else _unmarked(read_json(text))
    values = _sequence(text)
    if len(values) == 1 and isinstance(values[0], dict) and "tool_calls" in values[0]:
        if set(values[0]) - {"tool_calls", "thought"}:
            raise ValueError("unknown keys beside tool_calls")
        return _known(values[0]["tool_calls"])
    return _unmarked(values)


def _unmarked(values: list[Any]) -> list[Call]:
    """Calls from objects that nothing marks as such but their arguments, be they empty."""
    if not all(isinstance(value, dict) and _key_of(value) in value for value in values):
        raise ValueError("an object without arguments")
    return [call for value in values for call in _known(value, _key_of(value))]


def _key_of(value: dict[str, Any]) -> str:
    return "parameters" if "parameters" in value else "arguments"


def _sequence(text: str) -> list[Any]:
    """JSON objects with a semicolon or a new line between them."""
    values, at, decoder = [], 0, json.JSONDecoder()
    while at < len(text):
        try:
            _, end = decoder.raw_decode(text, at)
        except RecursionError:
            raise ValueError("nested too deeply") from None
        values.append(read_json(text[at:end]))
        between = re.compile(r"\s*;\s*|\s*\n\s*|\s*$").match(text, end)
        if between is None:
            raise ValueError("text between the objects")
        at = between.end()
    return values


_CALL_START = re.compile(r"\[?\s*[^\W\d][\w.-]*\s*\(")
# Strings as well, so that no name is found in one.
_STRING_OR_NAME = re.compile(
    r"""'''.*?'''|\"\"\".*?\"\"\"|'(?:\\.|[^'\\])*'|"(?:\\.|[^"\\])*"
    |(?<![\w.-])(?P<name>[^\W\d][\w.-]*)(?=\s*(?:\(|=(?!=)))""",
    re.DOTALL | re.VERBOSE,
)
_MARK = "\N{LATIN LETTER BILABIAL CLICK}"  # a letter to Python, and in no name that it is to see


def _allowed(text: str) -> str:
    """The text with names that Python allows: each other one becomes its code points, marked."""

    def replaced(found: re.Match[str]) -> str:
        name = found["name"]
        parts = name.split(".") if name else []
        if all(map(_is_plain, parts)):
            return found[0]
        return _MARK + _MARK.join(str(ord(letter)) for letter in name)

    return _STRING_OR_NAME.sub(replaced, text)


def _is_plain(part: str) -> bool:
    # Python normalises what is not ASCII (NFKC), and a schema does not.
    return part.isidentifier() and part.isascii() and not keyword.iskeyword(part)


def _written(name: str) -> str:
    """The name that `_allowed` replaced, or the same one."""
    first, *letters = name.split(_MARK)
    return "".join(chr(int(letter)) for letter in letters) if letters and not first else name


def _parse_python(text: str) -> list[Call] | None:
    """f(a=1), a list of such calls or one a line, all arguments by name and literal."""
    text = text.removeprefix("<|python_tag|>").strip()
    if not _CALL_START.match(text) or text[-1:] not in ")]":
        return None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # '\d' in a model's string is no fault of ours
            lines = ast.parse(_allowed(text)).body
        made = [line.value for line in lines if isinstance(line, ast.Expr)]
        if len(made) < len(lines):
            return None
        if len(made) == 1 and isinstance(made[0], ast.List | ast.Tuple):
            made = made[0].elts
        elif len(made) > 1 and not all(isinstance(item, ast.Call) for item in made):
            return None
        return _known([_python_call(item) for item in made])
    except (SyntaxError, RecursionError, MemoryError, TypeError):
        # Words may look alike: "See (the docs)".
        return None


def _python_call(node: ast.expr) -> Call:
    node = _unprinted(node)
    if not isinstance(node, ast.Call) or node.args:
        raise ValueError("not a call with arguments by name")
    names = [word.arg for word in node.keywords]
    if None in names or len(set(names)) < len(names):
        raise ValueError("arguments unpacked or given twice")
    arguments = {_written(str(word.arg)): _literal(word.value) for word in node.keywords}
    return {"name": _dotted(node.func), "arguments": arguments}


def _unprinted(node: ast.expr) -> ast.expr:
    match node:
        case ast.Call(ast.Name("print"), [inner], []):
            return inner
    return node


def _dotted(node: ast.expr) -> str:
    if isinstance(node, ast.Attribute):
        return f"{_dotted(node.value)}.{node.attr}"
    if isinstance(node, ast.Name):
        return _written(node.id)
    raise ValueError("not the name of a function")


_JSON_WORDS = {"true": True, "false": False, "null": None}


class _JsonWords(ast.NodeTransformer):
    """Reads true, false and null as JSON does; any other name stays, and is no literal."""

    def visit_Name(self, node: ast.Name) -> ast.expr:
        if node.id not in _JSON_WORDS:
            return node
        return ast.Constant(_JSON_WORDS[node.id])


def _literal(node: ast.expr) -> Any:
    value = ast.literal_eval(_JsonWords().visit(node))
    return list(value) if isinstance(value, tuple) else value


# Each gives the calls, None for a text that is not in its dialect, or ValueError for a text that is
# but is broken. The first that knows the dialect decides; those that look for a mark anywhere come
# last, since an argument may hold it.
DIALECTS = {
    "objects": _parse_objects,
    "python": _parse_python,
    "function_call": _parse_function_call,
    "llama_tags": _parse_llama_tags,
    "granite": _parse_granite,
    "mistral": _parse_mistral,
    "fenced": _parse_fenced,
    "hermes": _parse_hermes,
}
