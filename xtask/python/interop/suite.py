"""Puts the integration suite of a release of Celery into a folder.

    python suite.py VERSION FOLDER

Only tests are unpacked: the package itself comes from the environment that
runs them, and must not be hidden by another copy.
"""
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

WANTED = ("pyproject.toml", "t/__init__.py", "t/canvas_helpers.py", "t/skip.py", "t/integration/")


def download(version, folder):
    """The source package of the release, from the package index."""
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
    what = ["--no-deps", "--no-binary", "celery", f"celery=={version}"]
    subprocess.run([*pip, *what, "--dest", folder], check=True)
    return next(Path(folder).glob("celery-*.tar.gz"))


def unpack(package, folder):
    """Writes the tests below the folder."""
    with tarfile.open(package) as archive:
        for member in archive.getmembers():
            path = member.name.partition("/")[2]
            if not member.isfile() or not path.startswith(WANTED):
                continue
            target = Path(folder, path)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(archive.extractfile(member).read())


def main(version, folder):
    with tempfile.TemporaryDirectory() as place:
        unpack(download(version, place), folder)


if __name__ == "__main__":
    main(*sys.argv[1:])
