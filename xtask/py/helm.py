"""Helm's own engine. Input: {"chart", "values", "namespace"}, output: the rendered files; with "lint": what
it has to say.
"""
import json
import sys

from helm_python import Chart, lint
from helm_python.errors import HelmError

ask = json.load(sys.stdin)
try:
    if ask.get("lint"):
        answer = lint(ask["chart"], values=ask["values"], strict=True, kube_version="v1.37.0")
    else:
        with Chart.load(ask["chart"]) as chart:
            answer = chart.render(values=ask["values"], name="causeway", namespace=ask["namespace"])
except HelmError as error:
    sys.exit(str(error))
json.dump(answer, sys.stdout)
