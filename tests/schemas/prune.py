"""Cuts a Kubernetes custom resource's schema down to what a manifest uses: makes rayjob.json, with which
tests/test_deploy.py checks deploy/rayjob.yaml.

    python tests/schemas/prune.py ray.io_rayjobs.yaml deploy/rayjob.yaml > tests/schemas/rayjob.json

The first file is helm-chart/kuberay-operator/crds/ray.io_rayjobs.yaml of KubeRay (Apache-2.0). Wherever the manifest
goes, the names of all fields stay; of fields that it does not set, only the simple ones are looked at.
"""

import json
import sys
from pathlib import Path

import yaml

KEPT = ("type", "enum", "required", "minimum", "maximum", "minItems", "maxLength", "pattern", "anyOf")


def prune(schema, used):
    """`schema` for values like those of `used`, a list of what the manifest has in this place."""
    if not used and {"properties", "items", "additionalProperties"} & set(schema):
        return {}
    if schema.get("x-kubernetes-int-or-string"):  # whose pattern holds for strings alone, as JSON Schema has it
        return {"type": ["integer", "string"], **{key: schema[key] for key in ("pattern",) if key in schema}}
    kept = {key: schema[key] for key in KEPT if key in schema}
    if "properties" in schema:
        kept["properties"] = {
            name: prune(child, [value[name] for value in used if name in value])
            for name, child in schema["properties"].items()
        }
        kept["additionalProperties"] = False
    elif isinstance(schema.get("additionalProperties"), dict):
        kept["additionalProperties"] = prune(schema["additionalProperties"], [v for u in used for v in u.values()])
    if "items" in schema:
        kept["items"] = prune(schema["items"], [item for value in used for item in value])
    return kept


if __name__ == "__main__":
    resource, manifest = (yaml.safe_load(Path(path).read_text()) for path in sys.argv[1:])
    group, version = manifest["apiVersion"].split("/")
    assert (resource["spec"]["group"], resource["spec"]["names"]["kind"]) == (group, manifest["kind"])
    [whole] = [v["schema"]["openAPIV3Schema"] for v in resource["spec"]["versions"] if v["name"] == version]
    print(json.dumps(prune(whole, [manifest]), indent=1))
