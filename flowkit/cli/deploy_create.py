"""Deploying a flow: everything is checked first and told at once, then uploaded, compiled, carried to the scheduler."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from flowkit.cli.session import Session
from flowkit.deployer.gather import Asked, executor_specs, gather
from flowkit.deployer.target import Deployment, DeploymentRecord, Target
from flowkit.deployer.tokens import Wish, check_wish, decide, keep_token, kept_token, new_token, token_key
from flowkit.deployer.values import DeployValues, deploy_values
from flowkit.exceptions import FlowInvalid, FlowkitError, Problem, UsageError
from flowkit.runtime.bootstrap import StoredPackage, store_package

if TYPE_CHECKING:
    from flowkit.datastore.storage import Storage
    from flowkit.package.files import Package

_STAND_IN = "0" * 64
"""A key of a blob, while it is not known yet."""
_LONGEST_WORD = 100_000
"""Characters of one word of a command: Linux takes 128 KB."""


class Order(NamedTuple):
    """What the user wants deployed.

    Parameters
    ----------
    target : Target
        With its options.
    name : str or None
        ``--name``.
    asked : Asked
        Options that every target has.
    wish : Wish
        About the token.
    given_workers : bool
        Whether ``--max-workers`` was given.
    only_json : bool
        Whether the document is shown, and nothing else happens.
    attribute_file : str or None
        Where a program that waits is told what was deployed.
    """

    target: Target
    name: str | None
    asked: Asked
    wish: Wish
    given_workers: bool = False
    only_json: bool = False
    attribute_file: str | None = None


def create(session: Session, order: Order) -> int:
    """Deploy the flow, or show what would be deployed.

    Raises
    ------
    FlowInvalid
        With everything that is wrong; nothing is uploaded or changed then.
    Conflict
        If something is deployed under the name that the user has not the token of.
    FlowkitError
        If the datastore or the service refuses.
    """
    check_wish(order.wish)
    _check_file(order.attribute_file)
    return _Creation(session, order).show() if order.only_json else _Creation(session, order).carry_out()


class _Creation:
    """One deployment on its way."""

    def __init__(self, session: Session, order: Order) -> None:
        self._session = session
        self._order = order
        self._target = order.target
        self._values: DeployValues | None = None
        self._package: Package | None = None
        self._root = _planned_root(session)
        self._storage: Storage | None = None
        self._unfit: tuple[Problem, ...] = ()

    def show(self) -> int:
        """Print the document; no service is asked, and nothing is written but to stdout."""
        from flowkit.datastore.memory import MemoryStorage

        self._validate(ask=False)
        aside = MemoryStorage()
        package = store_package(aside, self._packed())
        planned = self._gather(package, self._planned_token())
        template = self._store_template(aside, planned)
        deployment = self._gather(package, planned.token, template)
        document = self._target.compile(deployment)
        if isinstance(document, str):
            self._session.console.data(document.removesuffix("\n"))
        else:
            self._session.console.json(document)
        return 0

    def carry_out(self) -> int:
        """Deploy."""
        from flowkit.deployer.records import write_record

        target = self._target
        planned = self._validate(ask=True)
        found = target.find(planned.name)
        decision = decide(
            target.name,
            target.label,
            planned.name,
            planned.flow,
            found,
            self._order.wish,
            project=planned.project,
            branch=planned.branch,
        )
        storage = self._open()
        package = store_package(storage, self._packed())
        planned = self._gather(package, decision.token)
        template = self._store_template(storage, planned)
        deployment = self._gather(package, decision.token, template, time.time())
        lines = target.apply(deployment, target.compile(deployment))
        record = DeploymentRecord.from_json(deployment.record)
        assert record is not None
        write_record(storage, record)
        keep_token(target.name, token_key(record.name, record.project, record.branch), record.token)
        self._tell(deployment, record, lines, replaced=found is not None, new_token=decision.told)
        _write_attributes(self._order.attribute_file, record)
        return 0

    # -- checks ----------------------------------------------------------------------------------------------------

    def _validate(self, *, ask: bool) -> Deployment:
        """Find everything that is wrong, and tell it at once.

        Parameters
        ----------
        ask : bool
            Whether the service is asked, too.
        """
        session, target, wrong = self._session, self._target, _Wrong()
        valid = wrong.tried(lambda: session.prepare(executor_specs(target, session.decospecs)))
        deployment: Deployment | None = None
        try:
            wrong.tried(self._packed)
            deployment = self._gather(StoredPackage(_STAND_IN, 0, "flow.py", session.definition.name), "planned")
            self._look(deployment, wrong)
        except FlowkitError as error:
            wrong.add(error)
        except Exception:
            if valid:  # else it is no flow, which may look like anything: what is wrong with it is told
                raise
        if ask and self._remote:
            wrong.tried(self._open)
        if ask and deployment is not None:
            planned = deployment
            wrong.tried(lambda: wrong.problems.extend(target.preflight(planned)))
        wrong.tell()
        assert deployment is not None
        return deployment

    def _look(self, deployment: Deployment, wrong: _Wrong) -> None:
        """Find out what the target cannot do, and what shows only in its document."""
        from flowkit.datastore.layout import deployment_file
        from flowkit.deployer.capabilities import refusals

        if self._order.name is not None and deployment.project is not None:
            where = next(
                (item.location for item in self._session.definition.decorators if item.name == "project"), None
            )
            hint = "leave --name out: --branch gives it another place"
            wrong.problems.append(
                Problem("--name: a flow of a @project is called after its project and branch", where, hint)
            )
        if self._target.client_run and any(len(word) > _LONGEST_WORD for word in _config_words(self._session)):
            headline = f"the flow's configs have more than {_LONGEST_WORD:,} characters, too many to start a run with"
            wrong.problems.append(Problem(headline, hint="keep what is large in a file that a step reads"))
        of_target = self._target.problems(deployment)
        found = [*self._unfit, *refusals(self._target.name, deployment), *of_target]
        try:
            deployment_file(self._target.name, deployment.name)
        except FlowkitError as error:
            if not any(deployment.name[:20] in problem.headline for problem in of_target):  # which tells more
                found.append(Problem(error.headline, hint="give another name: --name"))
        wrong.problems += found
        if not found:
            wrong.tried(lambda: self._target.compile(deployment))

    # -- parts -----------------------------------------------------------------------------------------------------

    def _packed(self) -> Package:
        """Return the code package: its files are looked for once."""
        if self._package is None:
            from flowkit.cli.package import build

            self._package = build(self._session)
        return self._package

    @property
    def _remote(self) -> bool:
        from flowkit.datastore.root import scheme_of

        return scheme_of(self._root) is not None

    def _open(self) -> Storage:
        """Return the datastore, opened once; a folder is made."""
        if self._storage is None:
            self._storage = self._session.storage(create=True)
            self._root = self._storage.root
        return self._storage

    def _gather(
        self, package: StoredPackage, token: str, template: str = _STAND_IN, created: float = 0.0
    ) -> Deployment:
        session, order = self._session, self._order
        if self._values is None:
            from flowkit.datastore.root import scheme_of

            kind = scheme_of(self._root) or "local"
            say = session.console.say
            self._values = deploy_values(session.definition, user=session.user, storage=kind, say=say)
        gathered = gather(
            session.definition,
            self._target,
            package=package,
            root=self._root,
            user=session.user,
            token=token,
            template=template,
            name=order.name,
            asked=order.asked,
            values=self._values,
            metadata=session.metadata,
            created=created,
            client=self._client(token, template) if self._target.client_run else None,
        )
        self._unfit = gathered.problems
        return gathered.deployment

    def _client(self, token: str, template: str) -> dict[str, Any]:
        """Return how a run of the flow is started, for targets that start one as a user would."""
        session, asked = self._session, self._order.asked
        top = ["--datastore-root", self._root, "--metadata", session.metadata]
        for spec in session.decospecs:
            top += ["--with", spec]
        if session.package_suffixes:
            top += ["--package-suffixes", session.package_suffixes]
        top += _config_words(session)
        for name, value in session.options.items():
            option = f"--{name.replace('_', '-')}"
            if name == "trigger" or value is None or value is False:
                continue
            for item in value if isinstance(value, (list, tuple)) else (value,):
                top += [option] if item is True else [option, str(item)]
        run = ["--namespace", asked.namespace or f"production:{token}", "--max-log-size", str(asked.max_log_size)]
        run += ["--deployed-template", template]
        for tag in asked.tags:
            run += ["--tag", tag]
        ends = [("error", asked.notify_on_error), ("success", asked.notify_on_success)]
        if any(wanted for _, wanted in ends):
            run += ["--notify-about", ",".join(end for end, wanted in ends if wanted)]
        if self._order.given_workers:
            run += ["--max-workers", str(asked.max_workers)]
        return {"python": sys.executable, "folder": os.getcwd(), "top": top, "run": run}

    def _planned_token(self) -> str:
        """Return the token that the deployment would have, as far as nobody has to be asked."""
        wish, values = self._order.wish, self._values
        assert values is not None
        name = self._gather(StoredPackage(_STAND_IN, 0, "flow.py", self._session.definition.name), "planned").name
        key = token_key(name, values.project, values.branch)
        if wish.new or wish.authorize:
            return str(wish.new or wish.authorize)
        kept = kept_token(self._target.name, key)
        if kept is not None:
            return kept
        return f"{new_token(key).rpartition('-')[0]}-unassigned"

    def _store_template(self, storage: Storage, planned: Deployment) -> str:
        from flowkit.runtime.start import RunRequest
        from flowkit.runtime.template import store_template

        session, values = self._session, self._values
        assert values is not None
        request = RunRequest(
            user=session.user,
            parameters={name: values.defaults.get(name) for name in session.definition.parameters},
            tags=planned.tags,
            namespace=planned.namespace,
            decospecs=session.decospecs,
            options={name: value for name, value in session.options.items() if name != "trigger"},
            run_options={"max_log_size": self._order.asked.max_log_size},
            package=planned.record["package"],
        )
        return store_template(storage, session.definition, request, target=self._target.name, name=planned.name)

    # -- the last words ----------------------------------------------------------------------------------------------

    def _tell(
        self, deployment: Deployment, record: DeploymentRecord, lines: list[str], *, replaced: bool, new_token: bool
    ) -> None:
        session, target = self._session, self._target
        say = session.console.say
        verb = "Deployed again" if replaced else "Deployed"
        say(f"{verb}: {record.flow} to {target.label} as {record.name}.")
        for line in lines:
            say(line)
        for kind, events in (
            ("when this happens", deployment.events),
            ("when this has succeeded", deployment.finishes),
        ):
            if events:
                say(f"It runs {kind}: {', '.join(event.name for event in events)}.")
        if "trigger" in target.verbs:
            needed = "".join(f" --{plan.name} …" for plan in deployment.parameters if plan.required)
            say(f"Start a run now:\n    {command_of(session, target, self._order.name, 'trigger')}{needed}")
        if new_token:
            say(
                f"Its production token is {record.token}: you have it now; who else deploys, stops or deletes it gives "
                f"--authorize {record.token}"
            )


def command_of(session: Session, target: Target, name: str | None, verb: str) -> str:
    """Return a command about something deployed, as the user types it."""
    import shlex

    words = [session.program, *_branch_words(session), target.name, verb]
    if name is not None:
        words += ["--name", shlex.quote(name)]
    return " ".join(words)


def _branch_words(session: Session) -> list[str]:
    words = ["--branch", str(session.options["branch"])] if session.options.get("branch") else []
    return [*words, *(["--production"] if session.options.get("production") else [])]


class _Wrong:
    """What is wrong, gathered to be told at once."""

    def __init__(self) -> None:
        self.problems: list[Problem] = []
        self._error: FlowkitError | None = None

    def tried(self, act: Callable[[], Any]) -> bool:
        """Act, and keep what is wrong with it; return whether it worked."""
        try:
            act()
        except FlowkitError as error:
            self.add(error)
            return False
        return True

    def add(self, error: FlowkitError) -> None:
        """Keep an error."""
        if isinstance(error, FlowInvalid):
            self.problems.extend(error.problems)
        else:
            self._error = error
            self.problems.append(Problem(error.headline, error.where, error.hint))

    def tell(self) -> None:
        """Raise what was found; one error that stands alone as what it is.

        Raises
        ------
        FlowkitError
            If something is wrong.
        """
        problems = list(dict.fromkeys(self.problems))
        if len(problems) == 1 and self._error is not None:
            raise self._error
        if problems:
            raise FlowInvalid(problems)


def _planned_root(session: Session) -> str:
    """Return where the datastore is, without opening it."""
    if session.root is None:
        from flowkit.datastore.root import default_root

        return default_root()
    from flowkit.datastore.root import scheme_of

    return session.root.rstrip("/") if scheme_of(session.root) is not None else os.path.abspath(session.root)


def _config_words(session: Session) -> list[str]:
    """Return the flow's configs as they are now: a run does not read their files again."""
    if not session.definition.stored_configs:
        return []
    import json

    return ["--stored-configs", json.dumps(session.definition.stored_configs, ensure_ascii=False)]


def _check_file(path: str | None) -> None:
    if path is not None:
        _write_private(path, "")


def _write_attributes(path: str | None, record: DeploymentRecord) -> None:
    """Tell a program that waits what was deployed."""
    if path is not None:
        import json

        _write_private(path, json.dumps({"name": record.name, "flow_name": record.flow, "record": record.to_json()}))


def _write_private(path: str, text: str) -> None:
    """Write a file that only this user can read: there is a token in it."""
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with open(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
    except OSError as error:
        raise UsageError(f"--deployer-attribute-file: {path} cannot be written: {error.strerror}") from None


def order_of(target: Target, given: Mapping[str, Any]) -> Order:
    """Return what the options of ``create`` ask for."""
    from flowkit.metadata.tags import check_tags

    return Order(
        target=target,
        name=given["name"],
        asked=Asked(
            tags=tuple(check_tags(given["tags"])) if given["tags"] else (),
            namespace=given["namespace"],
            max_workers=given["max_workers"] or 100,
            max_log_size=given["max_log_size"],
            workflow_timeout=given["workflow_timeout"],
            concurrency=given["concurrency"],
            priority=given["priority"],
            notify_on_error=given["notify_on_error"],
            notify_on_success=given["notify_on_success"],
            title=given["workflow_title"] or "",
            description=given["workflow_description"] or "",
        ),
        wish=Wish(given["authorize"], given["new_token"], given["generate_new_token"]),
        given_workers=given["max_workers"] is not None,
        only_json=given["only_json"],
        attribute_file=given["deployer_attribute_file"],
    )
