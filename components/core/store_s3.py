"""The store on S3. Endpoint, region, credentials and CA bundle come from the standard AWS environment.

Two layers of retries: botocore's standard ones inside a request (AWS_MAX_ATTEMPTS), and around them whole operations
with exponential backoff and full jitter (KUBEALIGN_STORE_ATTEMPTS, KUBEALIGN_STORE_BACKOFF_SECONDS). Messages are built
from codes and URIs, never from what botocore says, which can quote endpoints with credentials in them.
"""

import os
import random
import re
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

import boto3
import botocore.exceptions as aws
from boto3.exceptions import (
    Boto3Error,
    RetriesExceededError,
    S3UploadFailedError,
)
from boto3.s3.transfer import TransferConfig
from botocore.config import Config

from components.core.errors import KubealignError, RetryableError, UserError
from components.core.store_local import explained, temporary
from components.core.store_manifest import (
    MANIFEST,
    CorruptError,
    Entry,
    FileInfo,
    Manifest,
    Progress,
    check_key,
    hash_file,
    list_files,
    run_parallel,
)

_PART_BYTES = 8 << 20
_DELETE_BATCH = 1000  # the most that DeleteObjects takes
# Classic, not CRT: boto3's CRT transfer ignores the endpoint and path style, and our callbacks could not stop it.
_TRANSFER = TransferConfig(
    multipart_threshold=_PART_BYTES,
    multipart_chunksize=_PART_BYTES,
    max_concurrency=8,
    max_io_queue=64,  # pieces of 256 KiB that may wait for a slow disk, for each of 8 files
    preferred_transfer_client="classic",
)
_PASSING_CODES = {
    "SlowDown", "RequestTimeout", "Throttling", "ThrottlingException", "TooManyRequests", "RequestLimitExceeded",
    "InternalError", "ServiceUnavailable", "OperationAborted", "ConditionalRequestConflict", "BadDigest",
    "IncompleteBody",
}  # fmt: skip
_CREDENTIALS_FIX = "check AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (in a cluster: the secret or the role of the pod)"
_REGION_FIX = "set AWS_REGION to the region of the bucket"
_FIXES = {
    "NoSuchBucket": "create the bucket or correct its name",
    "InvalidBucketName": "correct the name of the bucket",
    "AccessDenied": "allow s3:GetObject, PutObject, DeleteObject and ListBucket on this bucket and prefix",
    "SignatureDoesNotMatch": _CREDENTIALS_FIX,
    "InvalidAccessKeyId": _CREDENTIALS_FIX,
    "XAdminUserNotFound": _CREDENTIALS_FIX,  # versitygw's word for an unknown access key
    "ExpiredToken": "renew the credentials",
    "InvalidToken": "renew the credentials",
    "RequestTimeTooSkewed": "correct this machine's clock",
    "PermanentRedirect": _REGION_FIX,
    "AuthorizationHeaderMalformed": _REGION_FIX,
    "EntityTooLarge": "split the file",
    "QuotaExceeded": "free space in the store",
    "KeyTooLongError": "use shorter names",
}
_FIX_BY_STATUS = {
    301: _REGION_FIX,
    401: _CREDENTIALS_FIX,
    403: "check the credentials and their rights on this bucket and prefix",
}
_NO_OBJECT = {"NoSuchKey", "404"}

Result = TypeVar("Result")


@dataclass(frozen=True)
class Retry:
    """How often an operation is tried and how long is waited in between: random, at most base * 2**n seconds."""

    attempts: int = 4
    base_seconds: float = 0.5
    cap_seconds: float = 10.0

    @classmethod
    def from_env(cls) -> "Retry":
        try:
            attempts = int(os.environ.get("KUBEALIGN_STORE_ATTEMPTS", cls.attempts))
            base_seconds = float(os.environ.get("KUBEALIGN_STORE_BACKOFF_SECONDS", cls.base_seconds))
        except ValueError:
            raise UserError("KUBEALIGN_STORE_ATTEMPTS and KUBEALIGN_STORE_BACKOFF_SECONDS must be numbers") from None
        return cls(max(1, attempts), max(0.0, base_seconds))

    def wait_seconds(self, attempt: int) -> float:
        return random.uniform(0, min(self.cap_seconds, self.base_seconds * 2 ** (attempt - 1)))


class S3Store:
    """A bucket, or a prefix in it, as an object store. Safe to use from several threads; not across a fork."""

    def __init__(self, bucket: str, prefix: str = "", retry: Retry | None = None) -> None:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]+", bucket):
            # Not repeated in the message: it may be "key:secret@bucket".
            raise UserError(
                "the bucket name of an s3:// URI is not valid", fix="write s3://bucket/prefix, without credentials"
            )
        self.bucket = bucket
        self.prefix = check_key(prefix) + "/" if prefix else ""
        self.retry = retry or Retry.from_env()
        self._client = _make_client()

    def uri(self, key: str) -> str:
        return f"s3://{self.bucket}/{self.prefix}{key}"

    def put(self, key: str, data: bytes, *, if_absent: bool = False) -> bool:
        """Write an object. With `if_absent`, False and no change where it exists already (also under a race)."""
        target = {"Bucket": self.bucket, "Key": self._key(key)}
        if not if_absent:
            self._try(key, lambda _: self._client.put_object(Body=data, **target))
            return True

        def put_once(attempt: int) -> bool:
            try:
                self._client.put_object(Body=data, IfNoneMatch="*", **target)
            except aws.ClientError as error:
                if _code(error) != "PreconditionFailed":
                    raise
                # After a retry, what is in the way may be our own first try whose answer was lost.
                tried_before = attempt > 1 or error.response["ResponseMetadata"].get("RetryAttempts", 0) > 0
                return tried_before and self.get(key) == data
            return True

        return self._try(key, put_once)

    def get(self, key: str) -> bytes:
        target = {"Bucket": self.bucket, "Key": self._key(key)}
        data: bytes = self._try(key, lambda _: self._client.get_object(**target)["Body"].read())
        return data

    def exists(self, key: str) -> bool:
        """Whether there is an object of just this name.

        By listing, because the answer to HEAD has no body: a missing bucket and a missing key would look the same.
        """
        name = self._key(key)
        page = self._try(key, lambda _: self._client.list_objects_v2(Bucket=self.bucket, Prefix=name, MaxKeys=1))
        return any(item["Key"] == name for item in page.get("Contents", ()))

    def list(self, prefix: str = "") -> Iterator[Entry]:
        """The objects under the folder `prefix`, in byte order of their keys, page by page."""
        query = {"Bucket": self.bucket, "Prefix": self._key(prefix) + "/" if prefix else self.prefix}
        while True:
            page = self._try(prefix, lambda _: self._client.list_objects_v2(**query))
            for item in page.get("Contents", ()):
                if not item["Key"].endswith("/"):  # what consoles make to show an empty folder
                    yield Entry(item["Key"].removeprefix(self.prefix), item["Size"], item["ETag"].strip('"'))
            if not page.get("IsTruncated"):
                return
            query["ContinuationToken"] = page["NextContinuationToken"]

    def upload_file(self, path: Path, key: str, progress: Progress | None = None) -> FileInfo:
        """Stream a file up, in parallel parts where it is large, and say what was sent."""
        name = self._key(key)
        with explained(path):
            before = path.stat()
            info = hash_file(path, _pulse(progress))
            self._transfer(
                key, progress, lambda add: self._client.upload_file(str(path), self.bucket, name, None, add, _TRANSFER)
            )
            after = path.stat()
        if (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns) or after.st_size != info.size:
            raise UserError("changed while it was uploaded", where=str(path), fix="publish when nothing writes to it")
        return info

    def download_file(self, key: str, path: Path, progress: Progress | None = None) -> FileInfo:
        """Stream an object into a file, by way of a temporary sibling, and say what arrived."""
        name = self._key(key)
        with explained(path), temporary(path) as draft:
            self._transfer(
                key,
                progress,
                lambda add: self._client.download_file(self.bucket, name, str(draft), None, add, _TRANSFER),
            )
            info = hash_file(draft, _pulse(progress))
            os.replace(draft, path)
        return info

    def upload_dir(self, local_dir: Path, key: str, progress: Progress | None = None) -> str:
        """Publish a directory: the old manifest goes first and the new one comes last, so no reader sees a mixture.

        Files that only the old manifest lists are deleted; objects that no manifest lists are not ours to delete.
        Returns the manifest's digest. The caller keeps two publishers apart that want the same place at the same time.
        """
        names = list_files(local_dir)
        manifest_key = f"{check_key(key)}/{MANIFEST}"
        old: set[str] = set()
        if self.exists(manifest_key):
            with suppress(UserError):  # a broken manifest says nothing about what may be deleted
                old = set(Manifest.from_bytes(self.get(manifest_key), self.uri(key)).files)
            self._delete([manifest_key])
        infos = run_parallel(
            lambda name, add: self.upload_file(local_dir / name, f"{key}/{name}", add), names, progress
        )
        manifest = Manifest(dict(zip(names, infos, strict=True)))
        self.put(manifest_key, manifest.to_bytes())
        self._delete([f"{key}/{name}" for name in sorted(old - manifest.files.keys())])
        return manifest.digest

    def delete_prefix(self, prefix: str) -> None:
        """Delete the object or folder of this name, its manifest first, so that no reader trusts what is half gone."""
        manifest_key = f"{check_key(prefix)}/{MANIFEST}"
        self._delete([manifest_key])
        self._delete([prefix, *(entry.key for entry in self.list(prefix))])

    def _key(self, key: str) -> str:
        return self.prefix + check_key(key)

    def _delete(self, keys: Sequence[str]) -> None:
        for start in range(0, len(keys), _DELETE_BATCH):
            batch = {"Objects": [{"Key": self._key(key)} for key in keys[start : start + _DELETE_BATCH]], "Quiet": True}

            def delete(_: int, batch: dict[str, Any] = batch) -> dict[str, Any]:
                answer: dict[str, Any] = self._client.delete_objects(Bucket=self.bucket, Delete=batch)
                return answer

            answer = self._try(keys[start], delete)
            for failed in answer.get("Errors", ()):
                code = failed.get("Code", "unknown")
                raise UserError(
                    f"cannot delete: {code}", where=f"s3://{self.bucket}/{failed.get('Key')}", fix=_FIXES.get(code, "")
                )

    def _transfer(self, key: str, progress: Progress | None, move: Callable[[Progress], None]) -> None:
        """`move(add)` with retries; bytes of a failed try are taken back from the progress."""

        def move_once(_: int) -> None:
            moved = 0

            def add(count: int) -> None:
                nonlocal moved
                moved += count
                if progress:
                    progress(count)

            try:
                move(add)
            except Exception:
                if progress and moved:
                    progress(-moved)
                raise

        self._try(key, move_once)

    def _try(self, key: str, action: Callable[[int], Result]) -> Result:
        """`action(attempt)` until it succeeds, cannot succeed, or has failed often enough."""
        attempt = 0
        while True:
            attempt += 1
            try:
                return action(attempt)
            except (aws.ClientError, aws.BotoCoreError, Boto3Error, ConnectionError, TimeoutError) as exc:
                error = _understand(exc, self.uri(key))
                # Damage on the way shows once; damage in the store stays.
                most = {RetryableError: self.retry.attempts, CorruptError: 2}.get(type(error), 1)
                if attempt >= most:
                    raise error from exc
            time.sleep(self.retry.wait_seconds(attempt))


def _make_client() -> Any:
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    try:
        session = boto3.session.Session()
        # botocore itself reads only AWS_DEFAULT_REGION; every other SDK, and EKS, uses AWS_REGION.
        region = os.environ.get("AWS_REGION") or session.region_name or ("us-east-1" if endpoint else None)
        config = Config(
            retries={"mode": "standard"},
            # Servers with an endpoint of their own rarely have a DNS name for each bucket.
            s3={"addressing_style": "path"} if endpoint else None,
            max_pool_connections=64,  # 8 files with 8 parts each
            connect_timeout=10,
            read_timeout=60,
        )
        return session.client("s3", region_name=region, config=config)
    except (aws.BotoCoreError, ValueError) as error:
        what = f"the S3 client cannot be set up ({type(error).__name__})"
        raise UserError(what, fix="check AWS_ENDPOINT_URL, AWS_REGION and AWS_PROFILE") from error


def _pulse(progress: Progress | None) -> Progress | None:
    """A progress that counts nothing but still ends the work when the transfer is stopped."""
    return (lambda _: progress(0)) if progress else None


def _code(error: aws.ClientError) -> str:
    return str(error.response.get("Error", {}).get("Code", "unknown"))


def _understand(exc: Exception, uri: str) -> KubealignError:
    """What an error of boto3, s3transfer or a socket means: try again, corrupt, or something for the user to mend."""
    if isinstance(exc, S3UploadFailedError) and isinstance(exc.__context__, aws.ClientError):
        exc = exc.__context__
    if isinstance(exc, RetriesExceededError) and isinstance(exc.last_exception, Exception):
        exc = exc.last_exception
    name = type(exc).__name__
    if isinstance(exc, aws.ClientError):
        return _understand_answer(exc, uri)
    if isinstance(exc, aws.FlexibleChecksumError):
        return CorruptError("corrupt: the checksum differs from the stored one", where=uri, fix="publish it again")
    if isinstance(exc, aws.NoCredentialsError | aws.PartialCredentialsError):
        return UserError("no AWS credentials", where=uri, fix=_CREDENTIALS_FIX)
    if isinstance(exc, aws.SSLError) and "CERTIFICATE_VERIFY_FAILED" in str(exc):
        return UserError("the store's certificate is not trusted", where=uri, fix="set AWS_CA_BUNDLE to the CA's file")
    passing = (
        aws.HTTPClientError, aws.ConnectionError, aws.IncompleteReadError, aws.CredentialRetrievalError,
        aws.MetadataRetrievalError, RetriesExceededError, OSError,
    )  # fmt: skip
    if isinstance(exc, passing):
        return RetryableError(
            f"the store cannot be reached ({name})", where=uri, fix=f"is {_host()} up? then try again"
        )
    return UserError(f"the store's client refused ({name})", where=uri, fix="check the URI and the AWS_* settings")


def _understand_answer(error: aws.ClientError, uri: str) -> KubealignError:
    code, status = _code(error), error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
    if status >= 500 or status == 429 or code in _PASSING_CODES:
        return RetryableError(
            f"the store is busy or failing ({code})", where=uri, fix=f"is {_host()} well? then try again"
        )
    if code in _NO_OBJECT:
        return UserError("no such object, or no such bucket", where=uri, fix="check the URI")
    return UserError(f"the store refused: {code}", where=uri, fix=_FIXES.get(code) or _FIX_BY_STATUS.get(status, ""))


def _host() -> str:
    """Host and port of the endpoint, without the credentials that a URL can hold."""
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    return urlsplit(endpoint).netloc.rpartition("@")[2] if endpoint else "S3"
