"""The usual way, to measure the gateway against: FastAPI and aiokafka, the token checked in every call.

It runs as such a service is usually run: one process of uvicorn with its fast loop and parser, and an access log.
"""

import argparse
from contextlib import asynccontextmanager

import jwt
import uvicorn
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer
from fastapi import Depends, FastAPI, Header, HTTPException
from pydantic import BaseModel

parser = argparse.ArgumentParser()
for name in ("port", "bootstrap", "issuer", "audience"):
    parser.add_argument(f"--{name}", required=True)
options = parser.parse_args()
keys = jwt.PyJWKClient(f"{options.issuer}/protocol/openid-connect/certs", cache_keys=True)
consumers = {}


@asynccontextmanager
async def life(app):
    app.producer = AIOKafkaProducer(
        bootstrap_servers=options.bootstrap, acks="all", enable_idempotence=True, linger_ms=0
    )
    await app.producer.start()
    yield
    for consumer in consumers.values():
        await consumer.stop()
    await app.producer.stop()


app = FastAPI(lifespan=life)


def allowed(role):
    async def check(authorization: str = Header()):
        token = authorization.removeprefix("Bearer ")
        try:
            key = keys.get_signing_key_from_jwt(token)
            claims = jwt.decode(
                token, key, algorithms=["RS256"], audience=options.audience, issuer=options.issuer, leeway=30
            )
        except jwt.PyJWTError as error:
            raise HTTPException(401) from error
        if role not in claims.get("realm_access", {}).get("roles", []):
            raise HTTPException(403)

    return Depends(check)


class Produce(BaseModel):
    topic: str
    value: str
    key: str | None = None


@app.post("/produce", dependencies=[allowed("kafka_producer:write")])
async def produce(record: Produce):
    key = record.key.encode() if record.key is not None else None
    sent = await app.producer.send_and_wait(record.topic, record.value.encode(), key=key)
    return {"topic": sent.topic, "partition": sent.partition, "offset": sent.offset, "timestamp": sent.timestamp}


async def joined(topic, group_id):
    consumer = AIOKafkaConsumer(
        topic,
        bootstrap_servers=options.bootstrap,
        group_id=group_id,
        enable_auto_commit=False,
        auto_offset_reset="earliest",
        isolation_level="read_committed",
    )
    await consumer.start()
    return consumer


async def next_records(consumer, limit):
    batches = await consumer.getmany(timeout_ms=1000, max_records=limit)
    return [
        {
            "partition": record.partition,
            "offset": record.offset,
            "timestamp": record.timestamp,
            "key": record.key and record.key.decode(),
            "value": record.value and record.value.decode(),
        }
        for records in batches.values()
        for record in records
    ]


@app.get("/consume", dependencies=[allowed("kafka_consumer:read")])
async def consume(topic: str, group_id: str, limit: int = 100):
    """Stateless, as behind a load balancer: each call is a consumer's whole life."""
    consumer = await joined(topic, group_id)
    try:
        messages = await next_records(consumer, limit)
        await consumer.commit()
        return {"messages": messages}
    finally:
        await consumer.stop()


async def member(topic, group_id):
    """A consumer that stays a member of its group in this process."""
    if (topic, group_id) not in consumers:
        consumers[topic, group_id] = await joined(topic, group_id)
    return consumers[topic, group_id]


@app.get("/consume/warm", dependencies=[allowed("kafka_consumer:read")])
async def consume_warm(topic: str, group_id: str, limit: int = 100):
    """Poll and commit in one call."""
    consumer = await member(topic, group_id)
    messages = await next_records(consumer, limit)
    await consumer.commit()
    return {"messages": messages}


@app.get("/consume/poll", dependencies=[allowed("kafka_consumer:read")])
async def consume_poll(topic: str, group_id: str, limit: int = 100):
    """Poll now, commit when the caller has done its work: as long as it meets the same process again."""
    return {"messages": await next_records(await member(topic, group_id), limit)}


@app.post("/consume/commit", dependencies=[allowed("kafka_consumer:read")])
async def consume_commit(topic: str, group_id: str):
    await (await member(topic, group_id)).commit()
    return {}


uvicorn.run(app, host="127.0.0.1", port=int(options.port))
