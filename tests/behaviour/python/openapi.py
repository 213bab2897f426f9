"""openapi.py <document> <url> <token>: validates the document, then lets schemathesis try the functions behind the URL.

What a caller has to know and JSON Schema cannot say is here; the rest of what is expected is in schemathesis.toml.
"""

import os
import sys
import tempfile
from pathlib import Path

import schemathesis
import yaml
from openapi_spec_validator import validate
from schemathesis.cli import schemathesis as command

# Refusals of requests that are well-formed: they depend on what is in Kafka and in the registry.
WELL_FORMED = {"offset_out_of_range", "unprocessable_record", "schema_validation_failed", "record_too_large"}


document, url, token = sys.argv[1:]
parsed = yaml.safe_load(Path(document).read_text())
validate(parsed)
LEASE_TOKEN = parsed["components"]["schemas"]["LeaseToken"]["examples"][0]


def valid(case):
    return case.meta is not None and case.meta.generation.mode.is_positive


def records(body):
    """The records of a produce request, one or a batch."""
    return [record for record in body.get("records") or [body] if isinstance(record, dict)]


def whole(value):
    """JSON Schema takes 2.0 for an integer; the functions want whole numbers to be written as such."""
    if isinstance(value, dict):
        return {name: whole(member) for name, member in value.items()}
    if isinstance(value, list):
        return [whole(item) for item in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def within_reason(asked):
    # Parameters that exclude each other.
    if asked.get("lease_ms") is not None and asked.get("ack") != "manual":
        del asked["lease_ms"]
    if "offset" in asked:
        asked.pop("timestamp", None)
    if ":" in str(asked.get("offset")):
        asked.pop("partition", None)
        # Each partition is named once.
        offsets = dict(pair.split(":") for pair in asked["offset"].split(","))
        asked["offset"] = ",".join(f"{partition}:{offset}" for partition, offset in offsets.items())
    # Most topics are empty: nobody waits 25 s for nothing.
    if asked.get("timeout_ms"):
        asked["timeout_ms"] = min(int(asked["timeout_ms"]), 100)
    # A dead-letter topic has a name of its kind.
    if not str(asked.get("dlq_topic", ".dlq")).endswith(".dlq"):
        asked["dlq_topic"] = "orders.dlq"
    # Each topic is named once.
    if "topics" in asked:
        asked["topics"] = list({topic["topic"]: topic for topic in asked["topics"]}.values())
    # There is one broker, and it is small.
    if asked.get("replication_factor"):
        asked["replication_factor"] = 1
    if asked.get("partitions") and not isinstance(asked["partitions"], dict):
        asked["partitions"] = min(int(asked["partitions"]), 3)


@schemathesis.hook
def before_call(context, case, kwargs):
    # `cargo lambda watch` answers a body that is not UTF-8 by itself, with 500. API Gateway hands it on in base64; what
    # becomes of it then is tried in http.rs.
    if isinstance(case.body, bytes):
        case.body = case.body.decode("utf-8", "replace").encode()
    if not valid(case):
        return
    for asked in (case.query, case.body):
        if isinstance(asked, dict):
            within_reason(asked)
    # One of them is required.
    if case.path == "/kafka/consumer/fetch" and "timestamp" not in case.query:
        case.query.setdefault("offset", "earliest")
    # Events name their topic in the query, records in themselves.
    if "/producer/" in case.path:
        if "cloudevents" in case.media_type:
            case.query.setdefault("topic", "orders")
        else:
            case.query.pop("topic", None)
    if not isinstance(case.body, dict):
        return
    case.body = whole(case.body)
    # A token is what consume gives out; this one is of a lease of partition 0 that is over.
    if "token" in case.body:
        case.body["token"] = LEASE_TOKEN
        if case.body.get("through"):
            case.body["through"] = {"0": 0}
        if case.body.get("records"):
            case.body["records"] = [{"partition": 0, "offset": 0}]
    # A subject begins with the topic's name.
    for record in records(case.body):
        for field in ("key_schema", "value_schema"):
            schema = record.get(field)
            if isinstance(schema, dict) and isinstance(schema.get("subject"), str):
                schema["subject"] = f"{record.get('topic')}-{field}"


@schemathesis.check
def what_is_valid_is_not_refused(context, response, case):
    """positive_data_acceptance by the error's code: its status says too little."""
    if valid(case) and response.status_code in (400, 413, 415, 422):
        problem = response.json()
        # What a topic's settings may be is for Kafka to say.
        expected = problem["code"] in WELL_FORMED or problem["detail"].startswith("configs: ")
        assert expected, f"{problem['code']}: {problem['detail']}"


config = Path(__file__).resolve().with_name("schemathesis.toml")
# It leaves files where it runs.
with tempfile.TemporaryDirectory() as folder:
    os.chdir(folder)
    command(
        [
            "--no-color",
            f"--config-file={config}",
            "run",
            document,
            f"--url={url}",
            f"--header=Authorization: Bearer {token}",
        ]
    )
