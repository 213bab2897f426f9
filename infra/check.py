"""Holds what is deployed equal to what the code has: infra/check runs it, with SAM's own Python.

Every check says all that is wrong, and the program fails if anything is.
"""

import json
import os
import re
import sys
import tomllib
from pathlib import Path

import yaml
from cfnlint.decode import decode
from cfnlint.template import Template
from cfnlint.template.transforms._language_extensions import language_extension
from samtranslator.parser.parser import Parser
from samtranslator.translator.translator import Translator

ROOT = Path(__file__).resolve().parent.parent
TEMPLATE = ROOT / "infra/template.yaml"
METHODS = {"get", "post", "put", "delete", "patch"}
wrong = []


def check(right, message):
    if not right:
        wrong.append(message)


def same(what, one, other):
    """Both must hold the same; what only one of them holds is named."""
    (name, left), (other_name, right) = one, other
    left, right = set(left), set(right)
    check(not left - right, f"{what}: only {name} has {sorted(left - right)}")
    check(not right - left, f"{what}: only {other_name} has {sorted(right - left)}")


def read(path):
    return (ROOT / path).read_text()


template, errors = decode(str(TEMPLATE))
assert not errors, errors
resources = template["Resources"]
functions = {
    name: resource["Properties"]
    for name, resource in resources.items()
    if isinstance(resource, dict) and resource["Type"] == "AWS::Serverless::Function"
}
binaries = {name: resources[name]["Metadata"]["BuildProperties"]["Binary"] for name in functions}
events = [
    (name, event["Properties"])
    for name, function in functions.items()
    for event in function["Events"].values()
    if event["Type"] == "HttpApi"
]


def deployed():
    """What CloudFormation makes of the template: the loops first, then SAM's resources."""
    os.environ["AWS_DEFAULT_REGION"] = "eu-central-1"
    problems, unrolled = language_extension(Template(str(TEMPLATE), template, ["eu-central-1"]))
    assert not problems, problems
    unrolled = json.loads(json.dumps(unrolled))
    unrolled["Globals"]["Function"]["CodeUri"] = "s3://bucket/key"  # as `sam package` leaves it
    return Translator({}, Parser()).translate(unrolled, {})["Resources"]


deployed = deployed()


def names():
    """A function's logical id is its binary's name, and each has its own."""
    for name, binary in binaries.items():
        check(name == "".join(word.title() for word in binary.split("-")), f"{name} runs {binary}")
        check(functions[name]["FunctionName"] == {"Fn::Sub": f"${{AWS::StackName}}-{name}"}, f"{name}: FunctionName")


def routes():
    """The events and the API's own paths are the same, and every route leads to the function that its event belongs to."""
    paths = resources["Api"]["Properties"]["DefinitionBody"]["paths"]
    listed = {(method.upper(), path) for path, methods in paths.items() for method in methods}
    same("routes", ("the API", listed), ("the functions' events", {(e["Method"], e["Path"]) for _, e in events}))
    body = deployed["Api"]["Properties"]["Body"]["paths"]
    for name, event in events:
        operation = body[event["Path"]][event["Method"].lower()]
        uri = operation["x-amazon-apigateway-integration"]["uri"]["Fn::Sub"]
        check(f"${{{name}.Arn}}" in uri, f"{event['Path']} leads to {uri}")
        check(operation["security"]["Fn::If"][0] == "Authorizer", f"{event['Path']} cannot have an authorizer")


def code():
    """Template, `watch.router`, openapi.yaml and the functions' folder have the same routes, led to the same functions."""
    router = tomllib.loads(read("Cargo.toml"))["workspace"]["metadata"]["lambda"]["watch"]["router"]
    watched = {(route["method"], path, route["function"]) for path, routes in router.items() for route in routes}
    here = {(event["Method"], event["Path"], binaries[name]) for name, event in events}
    same("routes", ("watch.router", watched), ("the template", here))
    documented = yaml.safe_load(read("infra/openapi.yaml"))["paths"]
    documented = {(method.upper(), path) for path, methods in documented.items() for method in methods if method in METHODS}
    same("routes", ("openapi.yaml", documented), ("the template", {route[:2] for route in here}))
    folders = {path.name for path in (ROOT / "functions").iterdir() if (path / "Cargo.toml").exists()}
    same("functions", ("functions/", folders), ("the template", binaries.values()))
    tried = re.findall(r"^async fn (\w+)\(\) {$", read("tests/behaviour/smoke.rs"), re.MULTILINE)
    same("functions", ("smoke.rs", tried), ("functions/", {name.replace("-", "_") for name in folders}))


def variables():
    """The template sets what the README's table has, and nothing else."""
    table = read("README.md").split("## Configuration")[1].split("\n## ")[0]
    rows = [line.split("|")[1] for line in table.splitlines() if line.startswith("| `")]
    documented = {name for row in rows for name in re.findall(r"`([A-Z_]+)`", row)}
    given = set(template["Globals"]["Function"]["Environment"]["Variables"])
    for function in functions.values():
        given |= set(function.get("Environment", {}).get("Variables", {}))
    same("variables", ("the README", documented), ("the template", given))


def alarms():
    """Each function that answers calls has its three alarms, on metrics of its own."""
    for name in functions:
        kinds = {"Errors"} if name == "LagMonitor" else {"Errors", "Throttles", "Slow"}
        for kind in kinds:
            alarm = deployed.get(f"{name}{kind}", {}).get("Properties")
            check(alarm, f"no alarm {name}{kind}")
            dimensions = json.dumps(alarm and alarm["Dimensions"])
            check(f"{name}\"" in dimensions, f"{name}{kind} looks at {dimensions}")
    silent = [
        name
        for name, resource in deployed.items()
        if resource["Type"] == "AWS::CloudWatch::Alarm" and "AlarmActions" not in resource["Properties"]
    ]
    check(not silent, f"alarms that tell nobody: {silent}")


def metrics():
    """What CloudWatch makes metrics of is what the code writes."""
    message = re.search(r'message = "(.*)"', resources["DeadLetterFilter"]["Properties"]["FilterPattern"])[1]
    died = read("shared/src/telemetry.rs").split("pub fn died(")[1].split("\n}")[0]
    check(f'records, "{message}"' in died, f"no dead letter's line says: {message}")
    query, values = resources["ConsumerLag"]["Properties"]["Metrics"][0]["Expression"]["Fn::Sub"]
    monitor = read("shared/src/lag_monitor.rs")
    namespace = re.search(r'NAMESPACE: &str = "(.*)"', monitor)[1]
    wanted = f"""SELECT MAX(consumer_lag) FROM SCHEMA("{namespace}", job, "group", topic) WHERE job = '${{Job}}'"""
    check(query == wanted, query)
    check('"Dimensions": [["job", "group", "topic"]]' in monitor, "lag-monitor's dimensions")
    check('"Name": "consumer_lag"' in monitor and '"job": job' in monitor, "lag-monitor's metrics")
    given = template["Globals"]["Function"]["Environment"]["Variables"]["METRICS_JOB"]
    board, shown = resources["Dashboard"]["Properties"]["DashboardBody"]["Fn::Sub"]
    check(values == shown == {"Job": given}, "the alarm and the dashboard look at another job than METRICS_JOB")
    check(f"{{{namespace},job,group,topic}}" in board and 'job=\\"${Job}\\"' in board, "the dashboard's lag")


def dashboard():
    """The dashboard is JSON, its widgets do not overlap, and it names every function that answers calls."""
    body = resources["Dashboard"]["Properties"]["DashboardBody"]["Fn::Sub"][0]
    widgets = json.loads(body)["widgets"]
    corners = {(widget["x"], widget["y"]) for widget in widgets}
    check(len(corners) == len(widgets) and all(w["width"] == 8 and w["height"] == 6 for w in widgets), "widgets overlap")
    for widget in widgets:
        text = json.dumps(widget["properties"])
        if '"AWS/Lambda"' in text:
            missing = [name for name in functions if name != "LagMonitor" and f'"${{{name}}}"' not in text]
            check(not missing, f"{widget['properties']['title']}: {missing} missing")


def environments():
    """samconfig.toml gives parameters that there are, values that they take, and all that have no default."""
    parameters = template["Parameters"]
    config = tomllib.loads(read("samconfig.toml"))
    for environment in ("dev", "staging", "production"):
        given = dict(pair.split("=", 1) for pair in config[environment]["deploy"]["parameters"]["parameter_overrides"])
        required = {name for name, parameter in parameters.items() if "Default" not in parameter}
        check(not required - set(given), f"{environment}: {sorted(required - set(given))} have no value")
        for name, value in given.items():
            if name not in parameters:
                check(False, f"{environment}: there is no parameter {name}")
                continue
            parameter = parameters[name]
            allowed = [str(one) for one in parameter.get("AllowedValues", [value])]
            pattern = parameter.get("AllowedPattern", ".*")
            check(value in allowed and re.fullmatch(pattern, value), f"{environment}: {name} cannot be {value}")
        check(given["Stage"] == environment, f"{environment}: Stage is {given['Stage']}")
        built = config[environment]["build"]["parameters"]["parameter_overrides"]
        check(built == [f"Architecture={given['Architecture']}"], f"{environment}: built for another architecture")
        check(config[environment]["deploy"]["parameters"]["stack_name"].endswith(environment), f"{environment}: stack_name")


for part in (names, routes, code, variables, alarms, metrics, dashboard, environments):
    part()
for problem in wrong:
    print(f"infra: {problem}", file=sys.stderr)
sys.exit(bool(wrong))
