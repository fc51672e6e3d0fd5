"""The tutorial's consumer: one record at a time, one INCR a record.

consumer.py KAFKA REDIS TOPIC GROUP N
"""

import json
import sys
from datetime import datetime

import redis
from confluent_kafka import Consumer

from tell import done, first

kafka, server, topic, group, n = sys.argv[1:]
host, port = server.rsplit(":", 1)
db = redis.Redis(host=host, port=int(port))
consumer = Consumer({"bootstrap.servers": kafka, "group.id": group, "auto.offset.reset": "earliest"})
consumer.subscribe([topic])

read = 0
while read < int(n):
    msg = consumer.poll(1.0)
    if msg is None:
        continue
    if msg.error():
        raise SystemExit(msg.error())
    if read == 0:
        first()
    click = json.loads(msg.value())
    minute = datetime.fromisoformat(click["timestamp"]).strftime("%Y-%m-%dT%H:%M")
    db.incr(f"clicks:{click['user_id']}:{minute}")
    read += 1
done(read)
consumer.close()
