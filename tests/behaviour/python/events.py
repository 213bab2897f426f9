"""CloudEvents as their own SDK sees them.

events.py send <binary|structured> <attributes> <data>   an event as an HTTP request: its headers and body
events.py receive <binary|structured> <record>           the event of a Kafka record: its attributes and data
events.py record <binary|structured> <attributes> <data> an event as a Kafka record: key, value and headers

Attributes, data and records are JSON, bytes in records and bodies base64; what comes of it goes to standard output as JSON.
"""

import base64
import json
import sys

from cloudevents import http, kafka


def send(mode, attributes, data):
    event = http.CloudEvent(json.loads(attributes), json.loads(data))
    headers, body = (http.to_binary if mode == "binary" else http.to_structured)(event)
    return {"headers": headers, "body": base64.b64encode(body).decode()}


def receive(mode, record):
    record = json.loads(record)
    message = kafka.KafkaMessage(
        headers={name: base64.b64decode(value) for name, value in record["headers"]},
        key=None if record["key"] is None else base64.b64decode(record["key"]).decode(),
        value=base64.b64decode(record["value"]),
    )
    event = (kafka.from_binary if mode == "binary" else kafka.from_structured)(message)
    return {"attributes": dict(event.get_attributes()), "data": event.get_data()}


def record(mode, attributes, data):
    event = http.CloudEvent(json.loads(attributes), json.loads(data))
    message = (kafka.to_binary if mode == "binary" else kafka.to_structured)(event)
    key = message.key.encode() if isinstance(message.key, str) else message.key
    value = message.value.encode() if isinstance(message.value, str) else message.value
    return {
        "key": None if key is None else base64.b64encode(key).decode(),
        "value": base64.b64encode(value).decode(),
        "headers": [[name, base64.b64encode(value).decode()] for name, value in message.headers.items()],
    }


json.dump({"send": send, "receive": receive, "record": record}[sys.argv[1]](*sys.argv[2:]), sys.stdout)
