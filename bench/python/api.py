"""The tutorial's API. REDIS is the address of the server."""

import os

import redis
from fastapi import FastAPI

host, port = os.environ["REDIS"].rsplit(":", 1)
db = redis.Redis(host=host, port=int(port))
app = FastAPI()


@app.get("/clicks/{user_id}/{minute}")
def clicks(user_id: str, minute: str):
    count = db.get(f"clicks:{user_id}:{minute}")
    return {"user_id": user_id, "minute": minute, "clicks": int(count or 0)}
