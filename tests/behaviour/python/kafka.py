"""A Kafka client that shares no code with the gateway's: aiokafka, pure Python.

kafka.py <bootstrap> read <topic> <partitions> <count>   the records
kafka.py <bootstrap> write <topic> <records>             writes records, given as JSON
kafka.py <bootstrap> transactions <topic>                interleaves committed and aborted ones on two partitions
kafka.py <bootstrap> partitions <keys> <count>           where Java's partitioner puts keys, given as JSON

Bytes are base64 on the way in and out; what was written or read goes to standard output as JSON.
"""

import asyncio
import base64
import json
import sys

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.partitioner import DefaultPartitioner


def to_text(data):
    return None if data is None else base64.b64encode(data).decode()


def to_bytes(text):
    return None if text is None else base64.b64decode(text, validate=True)


async def read(bootstrap, topic, partitions, count):
    consumer = AIOKafkaConsumer(bootstrap_servers=bootstrap, auto_offset_reset="earliest", enable_auto_commit=False)
    await consumer.start()
    try:
        consumer.assign([TopicPartition(topic, partition) for partition in range(int(partitions))])
        records = [await consumer.getone() for _ in range(int(count))]
    finally:
        await consumer.stop()
    return [
        {
            "partition": record.partition,
            "offset": record.offset,
            "timestamp": record.timestamp,
            "key": to_text(record.key),
            "value": to_text(record.value),
            "headers": [[name, to_text(value)] for name, value in record.headers],
        }
        for record in sorted(records, key=lambda record: (record.partition, record.offset))
    ]


async def write(bootstrap, topic, records):
    receipts = []
    producers = {}
    try:
        for record in json.loads(records):
            compression = record.get("compression")
            if compression not in producers:
                producers[compression] = AIOKafkaProducer(bootstrap_servers=bootstrap, compression_type=compression)
                await producers[compression].start()
            receipt = await producers[compression].send_and_wait(
                topic,
                value=to_bytes(record.get("value")),
                key=to_bytes(record.get("key")),
                partition=record.get("partition"),
                timestamp_ms=record.get("timestamp"),
                headers=[(name, to_bytes(value)) for name, value in record.get("headers", [])],
            )
            receipts.append({"partition": receipt.partition, "offset": receipt.offset, "timestamp": receipt.timestamp})
    finally:
        for producer in producers.values():
            await producer.stop()
    return receipts


async def transactions(bootstrap, topic):
    ends = [(f"{topic}-1", True), (f"{topic}-2", False), (f"{topic}-3", True), (f"{topic}-4", False)]
    producers = []
    for name, commits in ends:
        producer = AIOKafkaProducer(bootstrap_servers=bootstrap, transactional_id=name)
        await producer.start()
        await producer.begin_transaction()
        producers.append((name, commits, producer))
    for round in range(5):
        for name, commits, producer in producers:
            value = f"{'committed' if commits else 'aborted'} {name} {round}".encode()
            await producer.send_and_wait(topic, value=value, partition=round % 2)
    for name, commits, producer in producers:
        await (producer.commit_transaction() if commits else producer.abort_transaction())
        await producer.stop()
    return [f"committed {name} {round}" for name, commits in ends if commits for round in range(5)]


async def partitions(_, keys, count):
    partitioner = DefaultPartitioner()
    everywhere = list(range(int(count)))
    return [partitioner(to_bytes(key), everywhere, everywhere) for key in json.loads(keys)]


async def main(bootstrap, command, *args):
    result = await {
        "read": read,
        "write": write,
        "transactions": transactions,
        "partitions": partitions,
    }[command](bootstrap, *args)
    json.dump(result, sys.stdout)


asyncio.run(main(*sys.argv[1:]))
