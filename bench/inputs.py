"""What the developer's day works on, made once: a source tree, a repository, packages of npm and wheels of pip."""

import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import workload
from places import ROOT, run

# A command line program and its tree of small packages, as most projects bring.
NPM_PACKAGES = ["typescript@5.9.3", "eslint@9.39.1", "express@5.1.0", "jest@29.7.0"]
NPM = "npm@10.9.4"
WHEELS = ["django==5.2.8", "sympy==1.14.0", "flask==3.1.2", "pygments==2.19.2"]

NODE = ROOT / "tests/e2e/js/node_modules/node/bin/node"


def make(directory: Path, files: int) -> Path:
    """Everything, as one archive whose only directory is `inputs`."""
    inputs = directory / "inputs"
    inputs.mkdir()
    workload.tree(str(inputs / "tree.tar"), files)
    repository(inputs)
    npm(inputs / "npm")
    wheels(inputs / "wheels")
    archive = directory / "inputs.tar"
    with tarfile.open(archive, "w") as packed:
        packed.add(inputs, "inputs")
    shutil.rmtree(inputs)
    return archive


def repository(inputs: Path) -> None:
    """The tree as a bare repository of a few commits."""
    tree = inputs / "unpacked"
    tree.mkdir()
    run("tar", "-xf", inputs / "tree.tar", "-C", tree)
    git = ["git", "-C", tree, "-c", "user.name=B", "-c", "user.email=b@example.com", "-c", "gc.auto=0"]
    run(*git, "init", "--quiet")
    for directory in sorted((tree / "tree").iterdir()):
        run(*git, "add", directory)
        run(*git, "commit", "--quiet", "--message", f"add {directory.name}")
    run("git", "clone", "--quiet", "--bare", "--no-local", tree, inputs / "repository.git")
    shutil.rmtree(tree)


def npm(directory: Path) -> None:
    """A project with its lock, a cache that has all of it, and npm itself."""
    project, cache = directory / "project", directory / "cache"
    project.mkdir(parents=True)
    (project / "package.json").write_text('{"name": "bench", "version": "1.0.0", "private": true}\n')
    # The lock says where each package is from, which is how the cache knows it.
    quiet = ["--silent", "--no-audit", "--no-fund", "--ignore-scripts", "--omit-lockfile-registry-resolved=false", "--cache", cache]
    run("npm", "install", *quiet, "--prefix", directory / "own", NPM)
    shutil.move(directory / "own/node_modules/npm", directory / "npm")
    shutil.rmtree(directory / "own")
    shutil.rmtree(cache)
    shutil.copy(os.path.realpath(NODE), directory / "node")
    # Npm of the benchmark's own version fills the cache, as it is this one that reads it.
    run(directory / "node", directory / "npm/bin/npm-cli.js", "install", *quiet, "--prefix", project, *NPM_PACKAGES)
    shutil.rmtree(project / "node_modules")


def wheels(directory: Path) -> None:
    """Wheels with what they need."""
    directory.mkdir()
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--only-binary=:all:"]
    subprocess.run([*command, "--dest", directory, *WHEELS], check=True)
    (directory / "requirements.txt").write_text("\n".join(WHEELS) + "\n")
