"""The datastore on S3 beside what the contract of all storages says: faults, conditions, parts, forks, bad input."""

from __future__ import annotations

import datetime
import itertools
import os
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import boto3
import pytest
from s3_trouble import Trouble

from flowkit.datastore.blobs import Blobs
from flowkit.datastore.root import open_storage
from flowkit.datastore.runs import claim_run
from flowkit.datastore.storage import Missing, Storage
from flowkit.exceptions import StoreError, UsageError
from flowkit.plugins.aws import errors, parts, session, transfer
from flowkit.plugins.aws.parts import split
from flowkit.plugins.aws.s3_storage import S3Storage


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(errors, "FIRST_PAUSE", 0.001)
    monkeypatch.setattr(errors, "LONGEST_PAUSE", 0.01)


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> int:
    """Large content begins at 10 kB."""
    for module in (parts, transfer):
        monkeypatch.setattr(module, "WHOLE", 10_000)
        monkeypatch.setattr(module, "PART", 6_000)
    return 10_000


@pytest.fixture
def root(aws) -> str:
    return f"s3://{aws.bucket()}/root"


def uploads(aws, root: str) -> list[dict]:
    return aws.client("s3").list_multipart_uploads(Bucket=root.split("/")[2]).get("Uploads", [])


# -- faults ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("rate", "sizes"), [(0.3, (0, 1, 9_000, 10_000, 10_001, 55_555)), (0.6, (3_000, 20_001))])
def test_right_bytes_from_a_service_in_trouble(
    aws, root: str, rate: float, sizes: tuple[int, ...], small_parts: int
) -> None:
    contents = [os.urandom(size) for size in sizes]
    with Trouble(aws.endpoint, rate=rate, seed=7) as trouble:
        aws.set(AWS_ENDPOINT_URL=trouble.url)
        storage = S3Storage(root, fresh=0)
        for number, content in enumerate(contents):
            path = f"a/{number}"
            done = _until(lambda path=path, content=content: storage.create(path, [content]))
            assert done is True or storage.read(path) == content
            assert _until(lambda path=path: storage.read(path)) == content
            memory = bytearray(len(content))
            assert _until(lambda path=path, m=memory: storage.read_into(path, 0, memoryview(m))) == len(content)
            assert memory == content
            assert _until(lambda path=path: storage.info(path)).size == len(content)
            assert _until(lambda path=path: storage.create(path, [b"other"])) is False
            _until(lambda path=path, content=content: storage.replace(path, [content, b"!"]))
            assert _until(lambda path=path: storage.read_range(path, 3, 10_001)) == (content + b"!")[3:10_004]
            assert _until(lambda path=path: storage.touch(path)) is True
        assert sorted(_until(lambda: list(storage.children("a")))) == sorted(str(n) for n in range(len(contents)))
        _until(lambda: storage.delete("a/1"))
        assert _until(lambda: storage.info("a/1")) is None
        with pytest.raises(Missing):
            _until(lambda: storage.read("a/1"))
        assert all(trouble.seen[fault] for fault in trouble.faults)
    aws.set(AWS_ENDPOINT_URL=aws.endpoint)
    assert len(uploads(aws, root)) <= trouble.seen["lost"] + trouble.seen["silence"] + trouble.seen["failed after"]


def _until(call: Callable[[], object], tries: int = 20):
    """Call until there is an answer instead of a StoreError; most calls need one."""
    for _ in range(tries):
        try:
            return call()
        except StoreError as error:
            if "s3://" not in error.headline:
                raise
            last = error
    raise last


@pytest.mark.parametrize("rate", [0.3, 0.7])
def test_in_trouble_exactly_one_creates_also_of_those_who_write_the_same(aws, root: str, rate: float) -> None:
    with Trouble(aws.endpoint, rate=rate, seed=3, faults=("lost", "silence", "failed after", "slow down")) as trouble:
        aws.set(AWS_ENDPOINT_URL=trouble.url)
        storages = [S3Storage(root) for _ in range(6)]
        for round_ in range(8):
            told = _together([lambda s=s, n=round_: s.create(f"claims/{n}", [b"the same"]) for s in storages])
            assert told.count(True) <= 1
            assert told.count(True) == 1 or None in told
    aws.set(AWS_ENDPOINT_URL=aws.endpoint)
    assert S3Storage(root).read("claims/0") == b"the same"


def test_in_trouble_a_version_is_replaced_by_one_at_most(aws, root: str) -> None:
    with Trouble(aws.endpoint, rate=0.4, seed=5) as trouble:
        aws.set(AWS_ENDPOINT_URL=trouble.url)
        storages = [S3Storage(root) for _ in range(5)]
        _until(lambda: storages[0].replace("lease", [b"0"]))
        for turn in range(6):
            version = _until(lambda: storages[0].read_version("lease")).version
            writers = [
                lambda s=s, n=n, v=version, t=turn: s.replace_version("lease", b"%d %d" % (t, n), v)
                for n, s in enumerate(storages)
            ]
            assert _together(writers).count(True) <= 1


def test_in_trouble_runs_get_numbers_of_their_own(aws, root: str) -> None:
    with Trouble(aws.endpoint, rate=0.3, seed=11) as trouble:
        aws.set(AWS_ENDPOINT_URL=trouble.url)
        claims = [lambda n=n: claim_run(S3Storage(root), "Flow", {"nonce": n}) for n in range(8)]
        numbers = [number for number in _together(claims) if number is not None]
        assert len(set(numbers)) == len(numbers)
        assert len(numbers) >= 6


def _together(calls: list[Callable[[], object]]) -> list[object]:
    """Call all at once; None where one ended in a StoreError."""
    start = threading.Barrier(len(calls))
    results: list[object] = [None] * len(calls)

    def one(number: int) -> None:
        start.wait()
        try:
            results[number] = calls[number]()
        except StoreError:
            return

    threads = [threading.Thread(target=one, args=(number,)) for number in range(len(calls))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


def test_a_service_that_only_fails_is_given_up(aws, root: str) -> None:
    storage = S3Storage(root)
    storage.create("x", [b"1"])
    for fault, words in (("slow down", "slow down"), ("failed after", "fails"), ("reset before", "cannot")):
        with Trouble(aws.endpoint, rate=1.0, faults=(fault,)) as trouble:
            aws.set(AWS_ENDPOINT_URL=trouble.url)
            for call in (lambda: storage.read("x"), lambda: storage.info("x"), lambda: list(storage.children(""))):
                with pytest.raises(StoreError, match=words) as raised:
                    call()
                assert root in raised.value.headline
        assert trouble.seen[fault] <= 4 * errors.PATIENT
        if fault == "slow down":
            assert "TROUBLE1" in raised.value.headline


def test_blobs_in_trouble_come_whole_through_the_cache(aws, root: str) -> None:
    content = os.urandom(1 << 10) * 20_000
    with Trouble(aws.endpoint, rate=0.3, seed=2) as trouble:
        aws.set(AWS_ENDPOINT_URL=trouble.url)
        blobs = Blobs(S3Storage(root))
        key = _until(lambda: blobs.put([content[:9_000_000], content[9_000_000:]], len(content)))
        assert _until(lambda: blobs.get(key, len(content))) == content
        asked = trouble.seen["GET"]
        assert blobs.get(key, len(content)) == content
        assert trouble.seen["GET"] == asked


# -- conditions --------------------------------------------------------------------------------------------------------


def test_a_service_without_conditional_writes_is_refused(aws, root: str) -> None:
    for missing in ("if-none-match", "if-match"):
        with Trouble(aws.endpoint, without=(missing,)) as trouble:
            aws.set(AWS_ENDPOINT_URL=trouble.url)
            storage = S3Storage(root)
            for _ in range(2):
                with pytest.raises(StoreError, match="ignores the conditions"):
                    storage.create("x", [b"1"])
            with pytest.raises(StoreError, match="ignores the conditions"):
                storage.replace_version("x", b"1", "v")
    aws.set(AWS_ENDPOINT_URL=aws.endpoint)
    assert aws.client("s3").list_objects_v2(Bucket=root.split("/")[2])["KeyCount"] == 0


def test_conditional_writes_are_tried_out_once_for_a_root(aws, root: str) -> None:
    with Trouble(aws.endpoint) as trouble:
        aws.set(AWS_ENDPOINT_URL=trouble.url)
        first, second = S3Storage(root), S3Storage(root)
        assert first.create("a", [b"1"])
        assert first.create("b", [b"1"])
        trouble.seen.clear()
        assert second.create("c", [b"1"])
        assert second.create("d", [b"1"])
        assert trouble.seen["PUT"] == 2
        assert trouble.seen["HEAD"] == 1
    assert sorted(first.children("")) == ["a", "b", "c", "d"]


def test_large_content_is_created_once(aws, root: str, small_parts: int) -> None:
    content = os.urandom(50_000)
    storage, rival = S3Storage(root), S3Storage(root)

    def overtaken() -> Iterator[bytes]:
        yield content
        assert rival.create("big", [content, b"by the rival"])
        yield b"by the slow one"

    assert not storage.create("big", overtaken())
    assert storage.read("big") == content + b"by the rival"
    assert not storage.create("big", [content, b"by a late one"])
    assert storage.read("big") == content + b"by the rival"
    assert uploads(aws, root) == []


# -- parts -------------------------------------------------------------------------------------------------------------


def test_parts_are_whole_and_of_one_size(small_parts: int) -> None:
    content = os.urandom(100_003)
    cuts = [0, 1, 17, 5_999, 12_000, 12_001, 30_000, 99_999, 100_003]
    chunks = [content[a:b] for a, b in itertools.pairwise(cuts)]
    for given in (chunks, tuple(chunks), iter(chunks), [content], iter([memoryview(content)]), [bytearray(content)]):
        pieces = [bytes(piece) for piece in split(given)]
        assert b"".join(pieces) == content
        assert {len(piece) for piece in pieces[:-1]} == {6_000}
    assert list(split([])) == []
    assert list(split(iter([b"", b""]))) == []
    assert [bytes(p) for p in split([b"ab", memoryview(b"").cast("B"), b"c"])] == [b"abc"]
    typed = memoryview(bytearray(80_000)).cast("d")
    assert sum(len(piece) for piece in split([typed])) == 80_000


def test_parts_stay_below_the_limit_of_their_number(monkeypatch: pytest.MonkeyPatch, small_parts: int) -> None:
    monkeypatch.setattr(parts, "MOST_PARTS", 10)
    assert len(list(split([bytes(1_000_000)]))) <= 10
    sizes = list(itertools.islice(parts._sizes(iter(())), 10_000))
    assert sum(sizes) > 6_000 * 1_000 * 1_000
    assert sizes[:1000] == [6_000] * 1000


def test_an_upload_that_fails_is_aborted(aws, root: str, small_parts: int) -> None:
    def broken() -> Iterator[bytes]:
        yield bytes(50_000)
        raise KeyboardInterrupt

    storage = S3Storage(root)
    for write in (storage.create, storage.replace):
        with pytest.raises(KeyboardInterrupt):
            write("big", broken())
    assert storage.info("big") is None
    assert uploads(aws, root) == []


def test_an_upload_whose_part_is_refused_is_aborted(aws, root: str, small_parts: int) -> None:
    def refuse(method: str, path: str, headers: object):
        denied = b"<Error><Code>AccessDenied</Code><Message>no</Message></Error>"
        return (403, {}, denied) if "partNumber=4" in path else None

    with Trouble(aws.endpoint, answer=refuse) as trouble:
        aws.set(AWS_ENDPOINT_URL=trouble.url)
        with pytest.raises(StoreError, match="permission denied"):
            S3Storage(root).create("big", [bytes(100_000)])
        assert uploads(aws, root) == []


def test_few_parts_are_in_memory(aws, root: str, small_parts: int) -> None:
    taken = 0

    def content() -> Iterator[bytes]:
        nonlocal taken
        for _ in range(100):
            taken += 1
            yield bytes(6_000)

    most = 0

    def watch(method: str, path: str, headers: object) -> None:
        nonlocal most
        if "partNumber" in path:
            number = int(path.partition("partNumber=")[2].partition("&")[0])
            most = max(most, taken - number)
            time.sleep(0.005)

    with Trouble(aws.endpoint, answer=watch) as trouble:
        aws.set(AWS_ENDPOINT_URL=trouble.url)
        assert S3Storage(root).create("big", content())
    assert most <= 2 * transfer.THREADS + 2


def test_what_is_replaced_while_it_is_read_is_an_error(aws, root: str, small_parts: int) -> None:
    storage = S3Storage(root)
    storage.replace("big", [bytes(100_000)])
    done, turns = threading.Event(), [1]
    direct = boto3.client("s3", endpoint_url=aws.endpoint)

    def replace(method: str, path: str, headers: object) -> None:
        if method == "GET" and not done.is_set() and "bytes=54000-" in str(headers):
            done.set()
            direct.put_object(Bucket=root.split("/")[2], Key="root/big", Body=b"%d" % len(turns) * 100_000)

    with Trouble(aws.endpoint, answer=replace) as trouble:
        aws.set(AWS_ENDPOINT_URL=trouble.url)
        for read in (lambda: storage.read("big"), lambda: storage.read_into("big", 0, memoryview(bytearray(100_000)))):
            with pytest.raises(StoreError, match="replaced while it was read"):
                read()
            assert done.is_set()
            done.clear()
            turns.append(1)


# -- touch -------------------------------------------------------------------------------------------------------------


def test_touch_copies_nothing_that_is_fresh(aws, root: str) -> None:
    with Trouble(aws.endpoint) as trouble:
        aws.set(AWS_ENDPOINT_URL=trouble.url)
        storage = S3Storage(root)
        storage.create("x", [b"1"])
        trouble.seen.clear()
        assert storage.touch("x")
        assert trouble.seen["PUT"] == 0
        assert S3Storage(root, fresh=0).touch("x")
        assert trouble.seen["PUT"] == 1


def test_touch_of_what_is_too_large_for_one_copy(aws, root: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transfer, "LARGEST_COPY", 20_000_000)
    content = os.urandom(1 << 10) * 21_000
    storage = S3Storage(root, fresh=0)
    storage.replace("big", [content])
    before = storage.info("big")
    time.sleep(1.1)
    assert storage.touch("big")
    after = storage.info("big")
    assert before is not None
    assert after is not None
    assert after.modified > before.modified
    assert storage.read("big") == content
    assert uploads(aws, root) == []


# -- settings ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("setting", "algorithm", "key"),
    [("AES256", "AES256", None), ("aws:kms", "aws:kms", None), ("aws:kms:my-key", "aws:kms", "my-key")],
)
def test_encryption_is_asked_for(aws, root: str, small_parts: int, setting: str, algorithm: str, key: str) -> None:
    aws.set(FLOWKIT_S3_ENCRYPTION=setting)
    storage = S3Storage(root, fresh=0)
    storage.create("small", [b"1"])
    storage.create("big", [bytes(30_000)])
    storage.touch("small")
    version = storage.read_version("small").version
    assert storage.replace_version("small", b"2", version)
    for name in ("small", "big"):
        head = aws.client("s3").head_object(Bucket=root.split("/")[2], Key=f"root/{name}")
        assert head["ServerSideEncryption"] == algorithm
        assert key is None or key in head["SSEKMSKeyId"]
    aws.set(FLOWKIT_S3_ENCRYPTION="rot13")
    with pytest.raises(UsageError, match="rot13"):
        S3Storage(root)


def test_a_role_is_assumed(aws, root: str) -> None:
    used: list[str] = []

    def watch(method: str, path: str, headers) -> None:
        used.append({name.lower(): value for name, value in headers.items()}.get("authorization", ""))

    with Trouble(aws.endpoint, answer=watch) as trouble:
        aws.set(AWS_ENDPOINT_URL=trouble.url, FLOWKIT_S3_ROLE="arn:aws:iam::123456789012:role/reader")
        storage = S3Storage(root)
        assert storage.create("x", [b"1"])
        assert list(storage.children("")) == ["x"]
    own = [text for text in used if "AKIATESTER" in text]
    assert len(own) == 1
    assert "/sts/" in own[0]


def test_a_certificate_of_ones_own_is_trusted(aws, root: str, tmp_path: Path) -> None:
    certificate, key = _certificate(tmp_path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    with Trouble(aws.endpoint, tls=context) as trouble:
        aws.set(AWS_ENDPOINT_URL=trouble.url)
        with pytest.raises(StoreError, match="certificate"):
            S3Storage(root).read("x")
        aws.set(AWS_CA_BUNDLE=str(certificate))
        storage = S3Storage(root)
        assert storage.create("x", [b"1", bytes(100_000)])
        assert storage.read("x") == b"1" + bytes(100_000)


def _certificate(folder: Path) -> tuple[Path, Path]:
    import ipaddress

    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "127.0.0.1")])
    now = datetime.datetime.now(datetime.timezone.utc)
    made = (
        x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1)).not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), True)
        .sign(key, hashes.SHA256())
    )  # fmt: skip
    pem = serialization.Encoding.PEM
    (folder / "cert.pem").write_bytes(made.public_bytes(pem))
    secret = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    (folder / "key.pem").write_bytes(secret)
    return folder / "cert.pem", folder / "key.pem"


def test_every_way_of_naming_a_root(aws) -> None:
    bucket = aws.bucket()
    assert S3Storage(f"s3://{bucket}/").root == f"s3://{bucket}"
    for spec in (f"s3://{bucket}", f"s3://{bucket}/a b/ü~+&=%41/", f"s3://{bucket}/x"):
        storage = open_storage(spec)
        assert isinstance(storage, S3Storage)
        assert storage.root == spec.rstrip("/")
        assert storage.create("some/odd näme~(1)+%20", [b"1"])
        assert storage.read("some/odd näme~(1)+%20") == b"1"
        assert list(storage.children("some")) == ["odd näme~(1)+%20"]
    for spec in ("s3://", "s3:///x", "s3://b", "s3:bucket", f"s3://{bucket}/../x", "s3://bu cket/x", "s3://bucket\n/x"):
        with pytest.raises((UsageError, StoreError)):
            S3Storage(spec)


def test_many_names_are_listed(aws, root: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transfer, "PAGE", 10)
    client = aws.client("s3")
    bucket = root.split("/")[2]
    names = [f"{number:04d}" for number in range(33)]
    for name in names:
        client.put_object(Bucket=bucket, Key=f"root/many/{name}/x")
        client.put_object(Bucket=bucket, Key=f"root/many/{name}/y")
    assert sorted(S3Storage(root).children("many")) == names


def test_connections_are_not_shared_with_a_forked_process(workspace, aws, root: str) -> None:
    workspace.env.update(aws.env)
    program = f"""
    import os
    from flowkit.plugins.aws.s3_storage import S3Storage
    S3Storage.warm()
    storage = S3Storage({root!r})
    storage.replace("x", [b"0" * 1000])
    storage.read("x"), list(storage.children(""))
    children = []
    for number in range(4):
        pid = os.fork()
        if not pid:
            try:
                for turn in range(20):
                    storage.replace(f"c/{{number}}", [b"%d" % turn])
                    assert storage.read(f"c/{{number}}") == b"%d" % turn
                    assert storage.read("x") == b"0" * 1000
                    assert "x" in list(storage.children(""))
            except BaseException:
                import traceback
                traceback.print_exc()
                os._exit(1)
            os._exit(0)
        children.append(pid)
    for turn in range(40):
        assert storage.read("x") == b"0" * 1000
    assert [os.waitpid(pid, 0)[1] for pid in children] == [0] * 4
    """
    workspace.python(program, check=True)


def test_what_a_task_draws_does_not_depend_on_retries(aws, root: str) -> None:
    import random

    storage = S3Storage(root)
    random.seed(1)
    wanted = random.random()
    random.seed(1)
    with Trouble(aws.endpoint, rate=0.5) as trouble:
        aws.set(AWS_ENDPOINT_URL=trouble.url)
        for number in range(20):
            _until(lambda number=number: storage.replace(f"{number}", [b"1"]))
    assert random.random() == wanted


# -- bad input ---------------------------------------------------------------------------------------------------------


def everything(storage: Storage) -> list[Callable[[], object]]:
    return [
        lambda: storage.read("x"),
        lambda: storage.read_range("x", 0, 5),
        lambda: storage.info("x"),
        lambda: storage.create("x", [b"1"]),
        lambda: storage.replace("x", [b"1"]),
        lambda: storage.read_version("x"),
        lambda: storage.delete("x"),
        lambda: list(storage.children("")),
        lambda: storage.touch("x"),
    ]


def refused(root: str, words: str, hint: str) -> None:
    for number in range(9):
        storage = S3Storage(root)  # a new one: what the first call learns is not known to it
        with pytest.raises(StoreError, match=words) as raised:
            everything(storage)[number]()
        assert raised.value.hint is not None
        assert hint in raised.value.hint
        assert root.split("/")[2] in raised.value.headline


def test_no_credentials(aws, root: str) -> None:
    aws.set(AWS_ACCESS_KEY_ID=None, AWS_SECRET_ACCESS_KEY=None)
    refused(root, "no AWS credentials", "AWS_PROFILE")


def test_a_profile_that_is_not_there(aws, root: str) -> None:
    aws.set(AWS_PROFILE="nobody")
    with pytest.raises(StoreError, match="nobody") as raised:
        S3Storage(root).read("x")
    assert "~/.aws/config" in str(raised.value.hint)


def test_a_bucket_that_is_not_there(aws) -> None:
    refused("s3://no-such-bucket/root", "there is no bucket 'no-such-bucket'", "FLOWKIT_DATASTORE")


def error(code: str, status: int, **headers: str):
    body = f"<Error><Code>{code}</Code><Message>told by the test</Message></Error>".encode()

    def answer(method: str, path: str, asked: object):
        return status, headers, b"" if method == "HEAD" else body

    return answer


@pytest.mark.parametrize(
    ("code", "status", "words", "hint"),
    [
        ("AccessDenied", 403, "permission denied", "s3:PutObject"),
        ("ExpiredToken", 400, "have expired", "resume"),
        ("InvalidAccessKeyId", 403, "does not accept these credentials", "AWS_ACCESS_KEY_ID"),
        ("SignatureDoesNotMatch", 403, "does not accept these credentials", "AWS_SECRET_ACCESS_KEY"),
        ("RequestTimeTooSkewed", 403, "clock is wrong", "clock"),
    ],
)
def test_what_the_service_refuses(aws, root: str, code: str, status: int, words: str, hint: str) -> None:
    with Trouble(aws.endpoint, answer=error(code, status)) as trouble:
        aws.set(AWS_ENDPOINT_URL=trouble.url)
        refused(root, words, hint)
        assert "TROUBLE1" in _message(lambda: S3Storage(root).read("x"))
        assert trouble.seen["GET"] + trouble.seen["PUT"] + trouble.seen["HEAD"] < 80


def _message(call: Callable[[], object]) -> str:
    with pytest.raises(StoreError) as raised:
        call()
    return raised.value.headline


def test_a_bucket_in_another_region(aws, root: str) -> None:
    moved = error("PermanentRedirect", 301, **{"x-amz-bucket-region": "eu-north-1"})
    with Trouble(aws.endpoint, answer=moved) as trouble:
        aws.set(AWS_ENDPOINT_URL=trouble.url)
        refused(root, "not in this region: it is in eu-north-1", "AWS_REGION=eu-north-1")


def test_credentials_that_expire_and_are_renewed(aws, root: str) -> None:
    storage = S3Storage(root)
    storage.create("x", [b"1"])
    expire = error("ExpiredToken", 400)

    def answer(method: str, path: str, headers):
        return expire(method, path, headers) if "OLDKEY/" in str(headers) else None

    folder = Path(aws.env["AWS_CONFIG_FILE"]).parent

    def credentials(key: str) -> None:
        new = folder / f"new-{threading.get_ident()}"  # several threads of the service may be here at once
        new.write_text(f"[default]\naws_access_key_id={key}\naws_secret_access_key=s\n")
        os.replace(new, folder / "credentials")

    credentials("OLDKEY")
    with Trouble(aws.endpoint, answer=answer) as trouble:
        aws.set(
            AWS_ENDPOINT_URL=trouble.url,
            AWS_ACCESS_KEY_ID=None,
            AWS_SECRET_ACCESS_KEY=None,
            AWS_SHARED_CREDENTIALS_FILE=str(folder / "credentials"),
        )
        assert "have expired" in _message(lambda: storage.read("x"))
        credentials("NEWKEY")
        assert storage.read("x") == b"1"
        assert storage.replace_version("x", b"2", storage.read_version("x").version)

        def turn(method: str, path: str, headers):
            if "OLDKEY/" in str(headers):
                credentials("NEWKEY")
            return answer(method, path, headers)

        credentials("OLDKEY")
        session.forget()
        trouble.answer = turn
        assert _together([lambda: storage.read("x")] * 8) == [b"2"] * 8


def test_a_service_that_cannot_be_reached(aws, root: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with Trouble(aws.endpoint) as trouble:
        gone = trouble.url
    aws.set(AWS_ENDPOINT_URL=gone)
    refused(root, "cannot be reached", "FLOWKIT_S3_ENDPOINT_URL")
    aws.set(AWS_ENDPOINT_URL="http://no-such-host.invalid:1")
    assert "cannot be reached" in _message(lambda: S3Storage(root).read("x"))
    aws.set(AWS_ENDPOINT_URL="what://is this")
    assert _message(lambda: S3Storage(root).read("x"))


def test_something_that_is_not_s3(aws, root: str) -> None:
    def page(method: str, path: str, headers: object):
        return 200, {"Content-Type": "text/html"}, b"<html>Welcome!</html>" * 10

    def nothing(method: str, path: str, headers: object):
        return 404, {"Content-Type": "text/html"}, b"<html>Not here</html>"

    for answer in (page, nothing):
        with Trouble(aws.endpoint, answer=answer) as trouble:
            aws.set(AWS_ENDPOINT_URL=trouble.url)
            for number in (0, 1, 2, 3, 5, 7):
                with pytest.raises(StoreError):
                    everything(S3Storage(root))[number]()


def test_a_client_of_another_service(aws) -> None:
    assert session.client("batch") is session.client("batch")
    assert session.client("batch").meta.region_name == "us-east-1"
    assert session.configured_region() == "us-east-1"
    first = session.client("s3")
    session.forget()
    assert session.client("s3") is not first
