"""Confluent's own serializers, which share no code with the gateway.

schemas.py <registry> write <kind> <topic> <schema> <value>   registers the schema; the record's bytes
schemas.py <registry> read <kind> <topic> <schema> <bytes>    what the record says

Kinds are avro, jsonschema and protobuf; schema and value are JSON (for Protobuf the schema is the file's descriptor as
JSON and the name of a message). Bytes are base64.
"""

import base64
import json
import sys

from confluent_kafka.schema_registry import SchemaRegistryClient
from confluent_kafka.schema_registry.avro import AvroDeserializer, AvroSerializer
from confluent_kafka.schema_registry.json_schema import JSONDeserializer, JSONSerializer
from confluent_kafka.schema_registry.protobuf import ProtobufDeserializer, ProtobufSerializer
from confluent_kafka.serialization import MessageField, SerializationContext
from google.protobuf import descriptor_pb2, descriptor_pool, json_format, message_factory, timestamp_pb2  # noqa: F401


def message(schema):
    """A message's class, from its file's descriptor."""
    file, name = json.loads(schema)
    pool = descriptor_pool.Default()
    pool.Add(json_format.ParseDict(file, descriptor_pb2.FileDescriptorProto()))
    return message_factory.GetMessageClass(pool.FindMessageTypeByName(name))


def write(client, kind, schema, value, context):
    if kind == "avro":
        return AvroSerializer(client, schema)(json.loads(value), context)
    if kind == "jsonschema":
        return JSONSerializer(schema, client)(json.loads(value), context)
    cls = message(schema)
    serializer = ProtobufSerializer(cls, client, {"use.deprecated.format": False})
    return serializer(json_format.Parse(value, cls()), context)


def read(client, kind, schema, data, context):
    if kind == "avro":
        return AvroDeserializer(client)(data, context)
    if kind == "jsonschema":
        return JSONDeserializer(schema, schema_registry_client=client)(data, context)
    found = ProtobufDeserializer(message(schema), {"use.deprecated.format": False}, client)(data, context)
    return json_format.MessageToDict(found)


def main(registry, what, kind, topic, schema, data):
    client = SchemaRegistryClient({"url": registry})
    context = SerializationContext(topic, MessageField.VALUE)
    if what == "write":
        print(json.dumps(base64.b64encode(write(client, kind, schema, data, context)).decode()))
    else:
        found = read(client, kind, schema, base64.b64decode(data), context)
        print(json.dumps(found, default=lambda value: value.decode("latin-1") if isinstance(value, bytes) else str(value)))


main(*sys.argv[1:])
