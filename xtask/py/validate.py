"""Checks a manifest against Kubernetes' own schemas, strictly, and its configuration against the agent's.

Input: {"manifest", "versions", "config_schema"}; output: what is wrong, one thing a line.
"""
import json
import sys

import jsonschema
import kubernetes_validate
import yaml

ask = json.load(sys.stdin)
documents = [d for d in yaml.safe_load_all(ask["manifest"]) if d]
for version in ask["versions"]:
    for document in documents:
        what = f'{version}: {document["kind"]} {document["metadata"]["name"]}'
        try:
            kubernetes_validate.validate(document, version, strict=True)
        except Exception as error:
            at = "/".join(str(part) for part in getattr(error, "path", []))
            print(f'{what}: {at}: {getattr(error, "message", error)}')
validator = jsonschema.Draft202012Validator(ask["config_schema"])
for document in documents:
    if document["kind"] == "ConfigMap":
        config = yaml.safe_load(document["data"]["config.yaml"]) or {}
        for error in validator.iter_errors(config):
            print(f"configuration: {error.message}")
