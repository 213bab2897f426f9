"""Holds what is deployed equal to what the code has: infra/check runs it, with SAM's own Python.

Every check says all that is wrong, and the program fails if anything is.
"""

import itertools
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


def rows(path, heading):
    """The cells of the table below a heading."""
    lines = read(path).split(f"\n{heading}\n")[1].splitlines()
    lines = itertools.dropwhile(lambda line: not line.startswith("|---"), lines)
    lines = itertools.takewhile(lambda line: line.startswith("|"), itertools.islice(lines, 1, None))
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


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


# The template without its loops, as CloudFormation sees it; as text, since to translate it changes it.
os.environ["AWS_DEFAULT_REGION"] = "eu-central-1"
problems, loopless = language_extension(Template(str(TEMPLATE), template, ["eu-central-1"]))
assert not problems, problems
loopless = json.dumps(loopless)


def deployed(given):
    """What SAM makes of it with these parameters."""
    source = json.loads(loopless)
    source["Globals"]["Function"]["CodeUri"] = "s3://bucket/key"  # as `sam package` leaves it
    return Translator({}, Parser()).translate(source, given)["Resources"]


by_default = deployed({})


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
    body = by_default["Api"]["Properties"]["Body"]["paths"]
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
    """Each function that answers calls has its three alarms, on metrics of its own. All are explained, and paid for."""
    for name in functions:
        # A redrive takes as long as it may.
        kinds = {"LagMonitor": {"Errors"}, "Redrive": {"Errors", "Throttles"}}.get(name, {"Errors", "Throttles", "Slow"})
        for kind in kinds:
            alarm = by_default.get(f"{name}{kind}", {}).get("Properties")
            check(alarm, f"no alarm {name}{kind}")
            dimensions = json.dumps(alarm and alarm["Dimensions"])
            check(f"{name}\"" in dimensions, f"{name}{kind} looks at {dimensions}")
    all_alarms = {name: one["Properties"] for name, one in by_default.items() if one["Type"] == "AWS::CloudWatch::Alarm"}
    silent = [name for name, alarm in all_alarms.items() if "AlarmActions" not in alarm]
    check(not silent, f"alarms that tell nobody: {silent}")
    sections = read("docs/operations.md").split("\n## Alarms\n")[1].split("\n## ")[0].split("\n### ")[1:]
    explained = {name for section in sections for name in re.findall(r"`([\w<>]+)`", section.split("\n\n")[1])}
    for name in all_alarms:
        kinds = [f"<Function>{kind}" for kind in ("Errors", "Throttles", "Slow") if name.endswith(kind)]
        check(explained & {name, *kinds}, f"docs/operations.md does not explain the alarm {name}")
    check(f"{len(all_alarms)} alarms ×" in read("docs/operations.md"), f"the cost is not that of {len(all_alarms)} alarms")


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


def written():
    """The fields of the lines that telemetry.rs writes."""
    code = read("shared/src/telemetry.rs").split("#[cfg(test)]")[0]
    fields = {"timestamp", "level", "message", "target"}
    for macro in re.findall(r"tracing::(?:info|warn|error)!\((.*?)\);", code, re.DOTALL):
        for part in re.sub(r'"[^"]*"|parent: None', "", macro).split(","):
            name = re.match(r"[%?]?(\w+)$", part.split("=")[0].strip())
            fields |= {name[1]} if name else set()
    return fields


def asked():
    """The fields that queries and filters of CloudWatch name are those that the functions write."""
    fields = written()
    check({"request_id", "status", "duration_ms", "cold_start", "records", "reason"} <= fields, f"read were: {fields}")
    words = set("filter and or not like stats count pct sum max min by sort asc desc limit ispresent SOURCE".split())
    widgets = json.loads(resources["Dashboard"]["Properties"]["DashboardBody"]["Fn::Sub"][0])["widgets"]
    for widget in widgets:
        query = widget["properties"].get("query", "")
        named = set(re.findall(r'"(\w+)":', query))
        for step in re.sub(r"'[^']*'|@\w+", "", query).split("|"):
            sorts = step.strip().startswith("sort ")
            given = set(re.findall(r" as (\w+)", query)) if sorts else set()
            named |= set(re.findall(r"[A-Za-z_]\w*", re.sub(r" as \w+", "", step))) - words - given
        check(named <= fields, f"{widget['properties']['title']}: nobody writes {sorted(named - fields)}")
    for name, resource in resources.items():
        if isinstance(resource, dict) and resource["Type"] == "AWS::Logs::MetricFilter":
            named = set(re.findall(r"\$\.(\w+)", json.dumps(resource["Properties"])))
            check(named and named <= fields, f"{name}: nobody writes {sorted(named - fields)}")


def resource_of(arn):
    """Which resource of the cluster, or which parameter, an ARN in a policy means."""
    if list(arn) == ["Ref"]:
        return "cluster" if arn["Ref"] == "MskClusterArn" else arn["Ref"]
    [between, [first, *rest]] = arn["Fn::Join"]
    [kind, cluster] = first["Fn::Join"]
    assert between == "" and cluster == {"Fn::Split": [":cluster/", {"Ref": "MskClusterArn"}]}, arn
    return kind.strip(":/") + "".join(part if isinstance(part, str) else f"<{part['Ref']}>" for part in rest)


def granted():
    """What every statement of every policy says: where, to whom, Allow or Deny, what, on what."""
    for name, policy in resources.items():
        if not isinstance(policy, dict) or not policy["Type"].startswith("AWS::IAM::"):
            continue
        check(policy["Type"] == "AWS::IAM::Policy", f"{name} is no policy")
        properties, roles = policy["Properties"], []
        for role in properties["Roles"]:
            if "Fn::If" in role:
                check(role["Fn::If"][0] == "LagMonitored" and role["Fn::If"][2] == {"Ref": "AWS::NoValue"}, f"{name}: {role}")
                role = role["Fn::If"][1]
            roles.append(binaries[role["Ref"].removesuffix("Role")])
        for statement in properties["PolicyDocument"]["Statement"]:
            where = [policy["Condition"]]
            if "Fn::If" in statement:
                where.append(statement["Fn::If"][0])
                statement = statement["Fn::If"][1]
            actions, on = statement["Action"], resource_of(statement["Resource"])
            for action in [actions] if isinstance(actions, str) else actions:
                if action == "kms:Decrypt":
                    secret = properties["PolicyDocument"]["Statement"][0]["Resource"]
                    only = statement["Condition"]["StringEquals"]
                    check(only["kms:EncryptionContext:SecretARN"] == secret and "kms:ViaService" in only, f"{name}: kms")
                else:
                    check(set(statement) == {"Effect", "Action", "Resource"}, f"{name}: {action} has a condition")
                for role in roles:
                    yield ", ".join(where), role, statement["Effect"], action, on


def permissions():
    """Each function may do what docs/operations.md gives a reason for, and nothing else."""
    documented = set()
    for effect, action, on, who, where, reason in rows("docs/operations.md", "## What each function may do"):
        names = set(binaries.values()) if who == "all" else set(re.findall(r"`([\w-]+)`", who))
        check(names and names <= set(binaries.values()) and reason, f"docs/operations.md: {action} on {on}")
        [where] = re.findall(r"^`(.*)`$", where)
        actions, [on] = re.findall(r"`(.*?)`", action), re.findall(r"^`(.*)`$", on)
        documented |= {(where, name, effect, action, on) for name in names for action in actions}
    same("permissions", ("docs/operations.md", documented), ("the template", granted()))
    inline = [name for name, function in functions.items() if {"Policies", "Role"} & set(function)]
    check(not inline, f"policies that the table does not see: {inline}")
    with_schemas = {
        re.search(r'FUNCTION: &\'static str = "(.*)"', code)[1]
        for code in (path.read_text() for path in (ROOT / "shared/src").glob("*.rs"))
        if "const SCHEMAS: bool = true" in code
    }
    readers = {role for _, role, _, _, on in granted() if on == "SchemaRegistryCredentialsArn"}
    same("the registry's secret", ("the code", with_schemas), ("the template", readers))


# What docs/operations.md takes for its example, and what MSK allows a broker with IAM.
GROUPS, PARTITIONS, MOST = 1, 6, 3000


def connections():
    """The sum in docs/operations.md is that of its table and of samconfig.toml's production, and it fits."""
    given = parameters_of("production")
    reserved = {name: int(given[name]) for name in ("ReservedConcurrency", "ReservedConcurrencyOthers")}
    total = concurrency = 0
    table = {}
    for names, always, for_group, for_partition, _ in rows("docs/operations.md", "### Connections"):
        for name in re.findall(r"`([\w-]+)`", names):
            table[name] = (int(always), int(for_group), int(for_partition))
    same("functions", ("the table of connections", table), ("the template", binaries.values()))
    watched = len(given["LagMonitorGroups"].split(";"))
    for name, binary in binaries.items():
        always, for_group, for_partition = table[binary]
        limit = functions[name]["ReservedConcurrentExecutions"]["Fn::If"][1]
        sandboxes = limit if isinstance(limit, int) else reserved[limit["Ref"]]
        groups = watched if name == "LagMonitor" else GROUPS
        total += sandboxes * (always + groups * for_group + PARTITIONS * for_partition)
        concurrency += sandboxes
    check(2 * total <= MOST, f"production may come to {2 * total} connections at a broker")
    text, comment = read("docs/operations.md"), read("samconfig.toml")
    check(f"= {total} clients" in text and f"{2 * total} connections" in text, f"{total} clients, {2 * total} connections")
    check(f"{2 * total} connections" in comment, f"samconfig.toml: production may come to {2 * total} connections")
    check(f"= {concurrency} of 1000" in text, f"docs/operations.md: {concurrency} are reserved")


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


def parameters_of(environment):
    """What samconfig.toml gives an environment."""
    parameters = tomllib.loads(read("samconfig.toml"))[environment]["deploy"]["parameters"]
    return dict(pair.split("=", 1) for pair in parameters["parameter_overrides"])


def holds(rule, given):
    """What a function of CloudFormation's says of some parameters."""
    [(name, arguments)] = rule.items()
    if name == "Ref":
        return given[arguments]
    values = [holds(one, given) if isinstance(one, dict) else one for one in arguments]
    says = {"Fn::Not": lambda one: not one, "Fn::Equals": lambda one, other: one == other}
    says |= {"Fn::And": lambda *all_of: all(all_of), "Fn::Or": lambda *any_of: any(any_of)}
    says |= {"Fn::Contains": lambda among, one: one in among}
    return says[name](*values)


def with_defaults(given):
    return {name: str(one.get("Default", "")) for name, one in template["Parameters"].items()} | given


def broken(given):
    """What the template's rules find wrong with some parameters."""
    given = with_defaults(given)
    wanting = [rule for rule in template["Rules"].values() if holds(rule["RuleCondition"], given)]
    assertions = [assertion for rule in wanting for assertion in rule["Assertions"]]
    return [one["AssertDescription"] for one in assertions if not holds(one["Assert"], given)]


def rules():
    """Parameters that leave something out are refused, each for its own reason; the same with it are not."""
    secret, certificate = {"KafkaCredentialsArn": "a"}, {"KafkaClientCertFile": "c", "KafkaClientKeyFile": "k"}
    for given, *remedies in [
        ({"KafkaSecurity": "msk-iam"}, {"MskClusterArn": "a"}),
        ({"KafkaSecurity": "scram-sha-256"}, secret),
        ({"KafkaSecurity": "scram-sha-512"}, secret),
        ({"KafkaSecurity": "mtls"}, secret, certificate),
        ({"KafkaSecurity": "mtls", "KafkaClientCertFile": "c"}, secret, certificate),
        ({"SchemaValidation": "required"}, {"SchemaRegistryUrl": "u"}),
    ]:
        check(len(broken(given)) == 1, f"{given}: {broken(given)}")
        for remedy in remedies:
            check(not broken(given | remedy), f"{given | remedy}: {broken(given | remedy)}")


def roles():
    """SAM gives each function what the network takes, and X-Ray where that is on."""
    for environment in ("dev", "staging", "production"):
        given = with_defaults(parameters_of(environment))
        made = deployed(given)
        for name in functions:
            policies = json.dumps(made[f"{name}Role"]["Properties"]["ManagedPolicyArns"]).lower()
            check("awslambdavpcaccessexecutionrole" in policies, f"{environment}: {name} has no network: {policies}")
            traced = given["Tracing"] == "Active"
            check(("xray" in policies) == traced, f"{environment}: Tracing={given['Tracing']}, {name} has {policies}")


def environments():
    """samconfig.toml gives parameters that there are, values that they take, and all that have no default."""
    parameters = template["Parameters"]
    config = tomllib.loads(read("samconfig.toml"))
    for environment in ("dev", "staging", "production"):
        given = parameters_of(environment)
        check(not broken(given), f"{environment}: {broken(given)}")
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


for part in (
    names, routes, code, variables, alarms, metrics, asked, permissions, connections, dashboard, rules, roles, environments
):
    part()
for problem in wrong:
    print(f"infra: {problem}", file=sys.stderr)
sys.exit(bool(wrong))
