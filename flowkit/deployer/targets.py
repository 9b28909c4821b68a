"""Targets by their names, what is deployed to them, and what a run of it may be given."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from flowkit.datastore.storage import Storage
from flowkit.deployer.records import read_records
from flowkit.deployer.target import DeploymentRecord, ParameterPlan, Target
from flowkit.exceptions import Conflict, NotFound, UsageError, did_you_mean
from flowkit.registry import TABLES, load, names


def target_class(name: str) -> type[Target]:
    """Return the class of a target.

    Parameters
    ----------
    name : str
        As in the registry; dashes and underscores are the same.

    Raises
    ------
    NotFound
        If there is none of that name.
    MissingExtra
        If what it needs is not installed.
    UsageError
        If an installed package brings something else under the name.
    """
    dashed = name.replace("_", "-")
    # The packages that are installed are looked through only for a name that is not flowkit's own.
    if dashed not in TABLES["deployers"]:
        known = names("deployers")
        if dashed not in known:
            dashed = name
        if dashed not in known:
            raise _unknown(name, known)
    found = load("deployers", dashed)
    if not (isinstance(found, type) and issubclass(found, Target)):
        raise UsageError(f"the plugin '{name}' is no flowkit.deployer.target.Target", "see docs/plugins.md")
    return found


def _unknown(name: str, known: Sequence[str]) -> NotFound:
    """Return what to say of a scheduler that there is none of; its name may be the beginning of one's."""
    begun = [each for each in known if name and each.startswith(name.lower())]
    near = f"did you mean '{begun[0]}'?" if len(begun) == 1 else did_you_mean(name, known)
    all_of_them = f"known: {', '.join(known)}"
    return NotFound(
        f"there is no scheduler called {name!r} to deploy to", f"{near} {all_of_them}" if near else all_of_them
    )


def make_target(cls: type[Target], given: Mapping[str, Any], root: str | None = None) -> Target:
    """Return a target; options that are not given, or not known, have their defaults. `root` is the datastore."""
    options = {}
    for option in cls.options:
        value = given.get(option.name)
        if option.multiple:
            value = tuple(value) if isinstance(value, (list, tuple)) else value
        options[option.name] = option.default if value is None else value
    target = cls(options)
    target.root = root
    return target


def deployed_target(record: DeploymentRecord) -> Target:
    """Return the target of something deployed, with the options that it was deployed with."""
    return make_target(target_class(record.target), record.details, record.root or None)


def deployed_to(
    cls: type[Target], storage: Storage | None, *, flow: str | None = None, root: str | None = None
) -> list[DeploymentRecord]:
    """Return what is deployed to a target: what it finds where it looks, and what the datastore remembers elsewhere.

    A target looks in one place (a namespace, a folder of DAGs) where nothing is said, and something may have been
    deployed to another one.

    Parameters
    ----------
    cls : type
        The target's class.
    storage : Storage or None
        The datastore.
    flow : str, optional
        Only of this flow.
    root : str, optional
        The datastore, as for `make_target`.
    """
    found = {record.name: record for record in make_target(cls, {}, root).deployed(flow)}
    for known in read_records(storage, cls.name) if storage is not None else ():
        if known.name in found or flow not in (None, known.flow):
            continue
        try:
            record = deployed_target(known).find(known.name)
        except Conflict:  # the name is something else's by now
            continue
        if record is not None and flow in (None, record.flow):
            found[record.name] = record
    return list(found.values())


def checked_parameters(record: DeploymentRecord, given: Mapping[str, Any]) -> dict[str, str]:
    """Return the parameters of a run as JSON texts by attribute name.

    Parameters
    ----------
    record : DeploymentRecord
        What is to run.
    given : mapping
        Values by the parameter's name (dashes may be underscores) or attribute: of its type, or texts. None is as if
        it were not given.

    Raises
    ------
    UsageError
        With everything that is wrong: unknown parameters, values of another type, required ones that are missing.
    """
    plans = {plan.attribute: plan for plan in record.parameters}
    spelled = {plan.name.replace("-", "_"): plan for plan in record.parameters} | plans
    found: dict[str, str] = {}
    wrong: list[str] = []
    for name, value in given.items():
        plan = spelled.get(name.replace("-", "_")) or plans.get(name)
        if plan is None:
            near = did_you_mean(name, [each.name for each in record.parameters])
            known = ", ".join(each.name for each in record.parameters) or "none"
            wrong.append(f"{record.name} has no parameter '{name}' ({near or f'it has: {known}'})")
            continue
        if value is None:
            continue  # as if it were not given
        try:
            found[plan.attribute] = json.dumps(_typed(plan, value), ensure_ascii=False)
        except (TypeError, ValueError, RecursionError) as error:
            wrong.append(f"the parameter '{plan.name}': {error}")
    for plan in record.parameters:
        if plan.required and plan.attribute not in found:
            wrong.append(f"the parameter '{plan.name}' is required")
    if wrong:
        raise UsageError("\n".join(wrong))
    return found


def _typed(plan: ParameterPlan, value: Any) -> Any:
    """Return a value of a parameter's kind, or raise ValueError with what it takes."""
    read = {"integer": _integer, "number": _number, "boolean": _boolean}.get(plan.kind)
    if read is not None:
        return read(value)
    if plan.kind == "json":
        if isinstance(value, str):
            try:
                return json.loads(value)
            except ValueError:
                return value  # a text, or one that the parameter takes apart itself
        return list(value) if isinstance(value, tuple) else value
    text = value if isinstance(value, str) else str(getattr(value, "name", value))
    if plan.choices and text not in plan.choices:
        raise ValueError(f"{text!r} is none of {', '.join(plan.choices)}")
    return text


def _integer(value: Any) -> int:
    if isinstance(value, bool) or (isinstance(value, float) and not value.is_integer()):
        raise ValueError(f"it takes a whole number, not {value!r}")
    try:
        return int(value)
    except (TypeError, ValueError):
        raise ValueError(f"it takes a whole number, not {value!r}") from None


def _number(value: Any) -> float:
    if isinstance(value, bool):
        raise ValueError(f"it takes a number, not {value!r}")
    try:
        return value if isinstance(value, int) else float(value)
    except (TypeError, ValueError):
        raise ValueError(f"it takes a number, not {value!r}") from None


def _boolean(value: Any) -> bool:
    if isinstance(value, bool):
        return value
    lowered = str(value).strip().lower()
    if lowered in ("true", "1", "yes", "y", "on", "t"):
        return True
    if lowered in ("false", "0", "no", "n", "off", "f"):
        return False
    raise ValueError(f"it takes true or false, not {value!r}")


def no_deployment(name: str, label: str, deployed: list[str]) -> NotFound:
    """Return the error that nothing is deployed under a name."""
    near = did_you_mean(name, deployed)
    return NotFound(
        f"nothing is deployed as '{name}' at {label}",
        near or (f"deployed: {', '.join(deployed[:10])}" if deployed else "deploy it first: create"),
    )
