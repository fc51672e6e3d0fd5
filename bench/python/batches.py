"""The tutorial's consumer made fast: up to 1,000 records at a time, added up,
and written by one pipeline; offsets are committed after that.

batches.py KAFKA REDIS TOPIC GROUP N
"""

import json
import sys
from collections import Counter

import redis
from confluent_kafka import Consumer

from tell import done, first

kafka, server, topic, group, n = sys.argv[1:]
host, port = server.rsplit(":", 1)
db = redis.Redis(host=host, port=int(port))
consumer = Consumer({
    "bootstrap.servers": kafka,
    "group.id": group,
    "auto.offset.reset": "earliest",
    "enable.auto.commit": False,
})
consumer.subscribe([topic])

read = 0
while read < int(n):
    batch = consumer.consume(1000, 0.1)
    counts = Counter()
    for msg in batch:
        if msg.error():
            raise SystemExit(msg.error())
        click = json.loads(msg.value())
        # The minute is what the text says up to the seconds; it is in UTC.
        counts["clicks:" + click["user_id"] + ":" + click["timestamp"][:16]] += 1
    if not counts:
        continue
    if read == 0:
        first()
    with db.pipeline(transaction=False) as pipe:
        for key, by in counts.items():
            pipe.incrby(key, by)
        pipe.execute()
    consumer.commit(asynchronous=True)
    read += len(batch)
done(read)
consumer.close()
