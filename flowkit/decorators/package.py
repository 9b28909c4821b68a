"""``@package``: what belongs into the code package besides what is found there anyway."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from flowkit.decorators.attach import flow_decorator
from flowkit.decorators.contract import FlowDecorator
from flowkit.exceptions import Problem

if TYPE_CHECKING:
    from flowkit.model.definition import FlowDefinition


class Package(FlowDecorator):
    """Take further files along to where steps run.

    The code package of a flow has the Python files of its folder, as far as ``.gitignore`` and ``.flowkitignore`` do
    not leave them out. In the step they lie in the working directory, as they do beside the flow.

    Parameters
    ----------
    files : list of str or of (str, str), optional
        Files and folders, relative to the flow's own: a path, or a path and its name in the package. What lies
        outside the flow's folder gets its own last name, if it is given none.
    suffixes : list of str, optional
        All files of the flow's folder that end like this belong to it, too, e.g. ``.csv``.

    Examples
    --------
    >>> @package(files=["config.yml", ("../shared/queries", "queries")], suffixes=[".sql"])
    ... class TrainFlow(FlowSpec): ...
    """

    name = "package"
    defaults = {"files": (), "suffixes": ()}

    def configure_flow(self, flow: FlowDefinition, options: Mapping[str, Any]) -> list[Problem]:
        """Check the forms; whether the files are there matters only where a package is made."""
        problems = []
        for name, example in (("files", '["config.yml"]'), ("suffixes", '[".csv"]')):
            if not isinstance(self.attributes[name], list | tuple):
                problems.append(self.problem(f"@package({name}=…) takes a list", f"for example {name}={example}"))
        if problems:
            return problems
        for item in self.attributes["files"]:
            pair = isinstance(item, list | tuple) and len(item) == 2 and all(isinstance(part, str) for part in item)
            if not (pair or isinstance(item, str)) or not all(item):
                problems.append(
                    self.problem(
                        f"@package(files=…) has {item!r}, which is no path",
                        'for example "config.yml" or ("../shared/a.csv", "a.csv")',
                    )
                )
        for item in self.attributes["suffixes"]:
            if not isinstance(item, str) or not item.strip(".* "):
                problems.append(self.problem(f"@package(suffixes=…) has {item!r}, which is no suffix", "write .csv"))
        return problems

    def package_files(self) -> list[tuple[str, str]]:
        """Return the files and folders, each with its name in the package."""
        return [_named(item) if isinstance(item, str) else (item[0], item[1]) for item in self.attributes["files"]]

    def package_suffixes(self) -> list[str]:
        """Return the suffixes."""
        return list(self.attributes["suffixes"])


def _named(path: str) -> tuple[str, str]:
    normal = os.path.normpath(path).replace(os.sep, "/")
    outside = normal.startswith("../") or os.path.isabs(normal)
    return path, os.path.basename(normal) if outside else normal


package = flow_decorator(Package)
