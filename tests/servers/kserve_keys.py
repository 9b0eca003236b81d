"""The keys of manifests that KServe's SDK does not know, one a line: kserve_keys.py MANIFEST...

.servers/kserve/bin/python kserve_keys.py servingruntime.yaml
"""

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from kserve import models

VERSIONS = {"ServingRuntime": "V1alpha1", "InferenceService": "V1beta1"}


def unknown(value: Any, kind: str, where: str) -> Iterator[str]:
    """Those in a value of this kind, as the SDK writes it; Kubernetes's own are not read."""
    of = re.fullmatch(r"list\[(.+)\]", kind)
    if of is not None:
        for each in value:
            yield from unknown(each, of[1], where)
    elif hasattr(models, kind):
        model = getattr(models, kind)
        kinds = {key: model.openapi_types[name] for name, key in model.attribute_map.items()}
        for key, part in value.items():
            if key in kinds:
                yield from unknown(part, kinds[key], f"{where}.{key}")
            else:
                yield f"{where}.{key}"


for path in sys.argv[1:]:
    for document in yaml.safe_load_all(Path(path).read_text()):
        kind = document["kind"]
        for each in unknown(document, f"{VERSIONS[kind]}{kind}", kind):
            sys.stdout.write(f"{each}\n")
