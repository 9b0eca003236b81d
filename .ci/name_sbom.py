"""Write the version into an SBOM's own component, and its address on package indexes.

What makes the SBOM finds neither in pyproject.toml, where the version is said to be in the package.
"""

import json
import sys
from pathlib import Path


def main(path: Path, version: str) -> None:
    sbom = json.loads(path.read_text())
    component = sbom["metadata"]["component"]
    component["version"] = version
    component["purl"] = f"pkg:pypi/{component['name']}@{version}"
    assert len(sbom["components"]) > 10, "it lists next to nothing"
    path.write_text(json.dumps(sbom, indent=2, sort_keys=True) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
