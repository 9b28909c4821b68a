"""IncludeFile: a parameter whose value is the content of a file."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from flowkit.exceptions import UsageError
from flowkit.model.parameters import Parameter, ParameterContext


class IncludeFile(Parameter):
    """A file that is read when the run starts and kept with it: ``python flow.py run --data names.csv``.

    In the steps, and in the client, the value is the file's content.

    Parameters
    ----------
    name : str
        The option's name; the option takes a path.
    required : bool, default False
        Whether the run refuses to start without a path.
    is_text : bool, default True
        Whether the value is text (``str``) or ``bytes``.
    encoding : str, default "utf-8"
        Of the text.
    help : str, optional
        One line for ``--help``.
    parser : callable or str, optional
        Turns the text into the value; as a string ``package.module.function``.
    default : str or callable, optional
        A path, or a function of a `ParameterContext` that returns one.
    """

    expects = "a path"

    def __init__(
        self,
        name: str,
        required: bool | None = None,
        is_text: bool = True,
        encoding: str = "utf-8",
        help: str | None = None,
        parser: Callable[[Any], Any] | str | None = None,
        default: Any = None,
        show_default: bool = True,
    ) -> None:
        super().__init__(name, default=default, type=str, help=help, required=required, show_default=show_default)
        self.is_text = is_text
        self.encoding = encoding
        self.parser = parser

    @property
    def type_name(self) -> str:
        """What the option takes."""
        return "a path"

    def parse(self, text: str) -> Any:
        """Return the content of the file at a path.

        Raises
        ------
        UsageError
            If there is no such file, it cannot be read, is not text of the encoding, or the parser refuses it.
        """
        content = self._read(text)
        if not self.is_text:
            return self._parsed(content)
        try:
            return self._parsed(content.decode(self.encoding))
        except UnicodeDecodeError as error:
            raise UsageError(
                f"parameter '{self.name}': the file {text} is not {self.encoding} text ({error.reason})",
                "give IncludeFile an encoding, or is_text=False for binary content",
            ) from None

    def resolve_default(self, context: ParameterContext) -> Any:
        """Return the content of the default file."""
        path = super().resolve_default(context)
        return None if path is None else self.parse(path)

    def take(self, value: Any) -> Any:
        """Return the content of the file that a program names."""
        path = self._typed(value, "got")
        return None if path is None else self.parse(path)

    def _typed(self, value: Any, lead: str = "its default is") -> Any:
        if value is not None and not isinstance(value, str):
            raise self._wrong(value, lead)
        return value

    def _read(self, path: str) -> bytes:
        try:
            with open(path, "rb") as file:
                return file.read()
        except OSError as error:
            raise UsageError(
                f"parameter '{self.name}': the file {path} cannot be read: {error.strerror}",
                "the path is relative to the folder in which the command runs",
            ) from None

    def _parsed(self, content: Any) -> Any:
        if self.parser is None:
            return content
        try:
            parser = self._load(self.parser) if isinstance(self.parser, str) else self.parser
            return parser(content)
        except Exception as error:
            raise UsageError(
                f"parameter '{self.name}': the parser does not accept the file: {type(error).__name__}: {error}"
            ) from error

    @staticmethod
    def _load(dotted: str) -> Callable[[Any], Any]:
        import importlib

        module, _, attribute = dotted.rpartition(".")
        function: Callable[[Any], Any] = getattr(importlib.import_module(module), attribute)
        return function
