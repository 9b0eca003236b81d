"""Check that a wheel holds the package and nothing else, and a sdist what builds it."""

import sys
import tarfile
import zipfile

NEEDED = ("parity_models/py.typed", "parity_models/serving/grpc/protos.binpb")


def main(wheel: str, sdist: str) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    rooms = {name.partition("/")[0] for name in names}
    assert all(each == "parity_models" or each.endswith(".dist-info") for each in rooms), rooms
    missing = [name for name in NEEDED if name not in names]
    assert not missing, missing
    assert any(name.endswith("/licenses/LICENSE") for name in names), "no licence"
    assert any(name.startswith("parity_models/serving/page/") for name in names), "no page"
    with tarfile.open(sdist) as archive:
        names = [member.name.partition("/")[2] for member in archive.getmembers()]
    for name in (
        "pyproject.toml",
        "LICENSE",
        "README.md",
        "src/parity_models/py.typed",
    ):
        assert name in names, f"{name} is not in the sdist"


if __name__ == "__main__":
    main(*sys.argv[1:])
