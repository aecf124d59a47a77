"""Routes of your own beside qproxy's, under Hypercorn, with the settings of qproxy.toml and the environment.

    hypercorn custom_routes:app --worker-class trio
    curl -d 'A long text' http://127.0.0.1:8000/summary

The app is a Quart-Trio app. Like qproxy's own routes, these demand an API key once there are keys, and end
when the client disconnects.
"""

import json

import quart

import qproxy

MODEL = "qwen3.7-plus"

app = qproxy.create_app()
client = qproxy.InProcessClient(app)


@app.post("/summary")
async def summarize():
    """Return a summary of the posted text, at the expense of the caller's key."""
    text = (await quart.request.get_data()).decode()
    messages = [{"role": "user", "content": f"Summarize in one sentence:\n\n{text}"}]
    headers = {"content-type": "application/json"}
    if key := quart.request.headers.get("authorization"):
        headers["authorization"] = key
    body = json.dumps({"model": MODEL, "messages": messages})
    async with client.request("POST", "/v1/chat/completions", headers=headers, body=body) as response:
        answer = json.loads(await response.read())
    if response.status != 200:
        return answer, response.status
    return {"summary": answer["choices"][0]["message"]["content"]}
