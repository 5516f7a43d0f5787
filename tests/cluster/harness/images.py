"""Images without a registry: buildah builds what images/docker-bake.json names, containerd gets what it lacks.

The same Containerfiles, with a base made from Debian's packages in place of one from a registry.
"""

import hashlib
import json
import os
import re
import shutil
import subprocess
import tarfile
from pathlib import Path
from typing import Any

from tests.cluster.harness.cluster import SOCKET, Cluster
from tests.cluster.harness.machine import CONTAINERD, run
from tests.programs import CACHE, locked, program

HOUSE = Path(__file__).resolve().parents[3]
PREFIX = "localhost/kubealign"
TAG = "test"
BASE = "localhost/kubealign-test/base:1"
PAUSE = "localhost/kubealign-test/pause:1"
CERTIFICATES = "/etc/ssl/certs/ca-certificates.crt"
_DEBIAN = "bookworm"
_ROOTS = ("base", "launcher", "training")  # what the others are thin layers on
_STORAGE = CACHE / "buildah"


def build(*names: str) -> list[str]:
    """Build targets of the bake file, with what they stand on; returns the images' names."""
    bake = json.loads((HOUSE / "images" / "docker-bake.json").read_text())
    made: dict[str, str] = {}
    with locked("images"):
        _sweep()
        _make_base()
        for name in names:
            _build(name, bake, made)
        _sweep()
    return [made[name] for name in names]


def targets() -> list[str]:
    """Every image that the bake file names, in its order."""
    return json.loads((HOUSE / "images" / "docker-bake.json").read_text())["group"]["default"]["targets"]


def from_program(image: str, name: str, *, path: str, files: dict[str, Path] | None = None) -> str:
    """An image that holds one static program, and perhaps some files, and nothing else."""
    with locked("images"):
        container = _buildah("from", "scratch").strip()
        try:
            _buildah("copy", "--chmod", "755", container, str(program(name)), path)
            for inside, outside in (files or {}).items():
                _buildah("copy", container, str(outside), inside)
            _buildah("config", "--entrypoint", json.dumps([path]), "--user", "65532:65532", container)
            _buildah("commit", "-q", "--timestamp", "0", container, image)
        finally:
            _buildah("rm", container)
    return image


def derived(image: str, base: str, files: dict[str, Path], environment: dict[str, str] | None = None) -> str:
    """An image of ours with something wrong in it: files on top, and variables."""
    with locked("images"):
        container = _buildah("from", "--pull-never", base).strip()
        try:
            for inside, outside in files.items():
                _buildah("copy", "-q", container, str(outside.resolve()), inside)
            for name, value in (environment or {}).items():
                _buildah("config", "--env", f"{name}={value}", container)
            _buildah("commit", "-q", container, image)
        finally:
            _buildah("rm", container)
    return image


def config(image: str) -> dict[str, Any]:
    """What an image says of itself: labels, user, entry point."""
    found: dict[str, Any] = json.loads(_buildah("inspect", "--type", "image", image))["OCIv1"]["config"]
    return found


def load(cluster: Cluster, *images: str) -> None:
    """Give images to the cluster's containerd, those that it has not; a layer goes once, however many share it."""
    with locked("load"):
        _load(cluster, *images)


def _load(cluster: Cluster, *images: str) -> None:
    record = CONTAINERD / "loaded.json"
    loaded: dict[str, str] = json.loads(record.read_text()) if record.exists() else {}
    there = cluster.ctr("images", "list", "-q").split()
    wanted = {image: _id(image) for image in images}
    missing = [image for image, found in wanted.items() if image not in there or loaded.get(image) != found]
    if not missing:
        return
    stale = [image for image in missing if image in there]
    if any(_is_root(image) for image in stale):  # 12 GB each, which would lie there beside the new one
        cluster.ctr("images", "remove", "--sync", *stale)
    layout = CACHE / "oci"
    shutil.rmtree(layout, ignore_errors=True)
    blobs = layout / "blobs" / "sha256"
    blobs.mkdir(parents=True)
    # What containerd has is linked in, so that nobody writes or sends it again.
    known = set()
    for blob in (CONTAINERD / "io.containerd.content.v1.content" / "blobs" / "sha256").glob("*"):
        os.link(blob, blobs / blob.name)
        known.add(blob.name)
    for image in missing:
        if _is_root(image):
            _export_layers(image, blobs)
        _buildah("push", "-q", image, f"oci:{layout}:{image}")
    index = json.loads((layout / "index.json").read_text())
    for entry in index["manifests"]:
        name = entry["annotations"]["org.opencontainers.image.ref.name"]
        entry["annotations"] = {"io.containerd.image.name": name}
    (layout / "index.json").write_text(json.dumps(index))
    _import(cluster, layout, known)
    shutil.rmtree(layout)
    record.write_text(json.dumps(loaded | {image: wanted[image] for image in missing}))


def _is_root(image: str) -> bool:
    return image.rpartition("/")[2].partition(":")[0] in _ROOTS


def _export_layers(image: str, blobs: Path) -> None:
    """The layers as they are. buildah compresses what it pushes to an OCI layout, 6 GB of it, but not what lies there
    uncompressed already."""
    folder = blobs.parent / "uncompressed"
    _buildah("push", "-q", "--disable-compression", image, f"dir:{folder}")
    for path in folder.iterdir():
        if re.fullmatch(r"[0-9a-f]{64}", path.name):
            path.replace(blobs / path.name)
    shutil.rmtree(folder)


def _import(cluster: Cluster, layout: Path, known: set[str]) -> None:
    command = ["ctr", "--address", str(SOCKET), "-n", "k8s.io", "images", "import", "-"]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    assert process.stdin is not None and process.stdout is not None
    with process.stdin, tarfile.open(fileobj=process.stdin, mode="w|") as archive:
        for path in sorted(path for path in layout.rglob("*") if path.is_file() and path.name not in known):
            archive.add(path, str(path.relative_to(layout)))
    said = process.stdout.read().decode()
    if process.wait():
        raise RuntimeError(f"ctr images import failed: {said[-1000:]}")


def _build(name: str, bake: dict[str, Any], made: dict[str, str]) -> None:
    if name in made:
        return
    target = bake["target"][name]
    values = {key: variable["default"] for key, variable in bake["variable"].items()}
    values |= {"BASE": BASE, "PREFIX": PREFIX, "TAG": TAG, "REVISION": "test", "SOURCE": "test"}
    options: list[str] = []
    for label, where in target["contexts"].items():
        if where.startswith("target:"):
            _build(where.removeprefix("target:"), bake, made)
            where = f"container-image://{made[where.removeprefix('target:')]}"
        else:
            where = str(HOUSE / where)
        options += [f"--build-context={label}={where}"]
    options += [f"--build-arg={key}={_filled(value, values)}" for key, value in target["args"].items()]
    options += ["--build-arg=UV_NO_CACHE=false"]
    options += [f"--label={key}={_filled(value, values)}" for key, value in target["labels"].items()]
    cache = Path(run("sh", "-c", "echo ${UV_CACHE_DIR:-$HOME/.cache/uv}").strip())
    cache.mkdir(parents=True, exist_ok=True)
    image = _filled(target["tags"][0], values)
    if locks := _locks(name):
        options.append(f"--build-arg=LOCK={locks}")
    _buildah(
        "bud", "-q", "--isolation", "chroot", "--network", "host", "--layers", "--timestamp", "0", "--pull-never",
        "-v", f"{CERTIFICATES}:{CERTIFICATES}:ro", "-v", f"{cache}:/root/.cache/uv", *options,
        "-f", str(HOUSE / target["dockerfile"]), "-t", image, str(HOUSE),
    )  # fmt: skip
    made[name] = image


def _sweep() -> None:
    """Give back the disk of builds that were broken off and of layers that no image has any more, 6 GB a lock."""
    _buildah("rm", "--all")
    _buildah("rmi", "--prune")


def _locks(name: str) -> str:
    """A digest of the lock files that an image installs; "" where it installs nothing of its own."""
    found = sorted((HOUSE / "images" / name).glob("*.lock"))
    return hashlib.sha256(b"".join(path.read_bytes() for path in found)).hexdigest() if found else ""


def _filled(text: str, values: dict[str, str]) -> str:
    for key, value in values.items():
        text = text.replace(f"${{{key}}}", value)
    return text


def _make_base() -> None:
    """Debian's smallest system with Python: what a registry's slim image holds."""
    if _exists(BASE):
        return
    rootfs = CACHE / "rootfs"
    shutil.rmtree(rootfs, ignore_errors=True)
    run("debootstrap", "--variant=minbase", "--include=python3,ca-certificates", _DEBIAN, str(rootfs), timeout=900)
    for part in ("var/cache/apt/archives", "var/lib/apt/lists", "usr/share/doc", "usr/share/man"):
        shutil.rmtree(rootfs / part, ignore_errors=True)
    container = _buildah("from", "scratch").strip()
    try:
        _buildah("add", "-q", container, str(rootfs), "/")
        _buildah("commit", "-q", "--timestamp", "0", container, BASE)
    finally:
        _buildah("rm", container)
        shutil.rmtree(rootfs)


def _id(image: str) -> str:
    return _buildah("inspect", "--type", "image", "--format", "{{.FromImageID}}", image).strip()


def _exists(image: str) -> bool:
    command = ["buildah", *_storage(), "inspect", "--type", "image", image]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def _buildah(*arguments: str) -> str:
    return run("buildah", *_storage(), *arguments, timeout=1800)


def _storage() -> list[str]:
    return ["--root", str(_STORAGE), "--runroot", str(_STORAGE / "run"), "--storage-driver", "overlay"]
