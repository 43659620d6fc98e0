"""A model's tokens in a browser, each once, whatever breaks off: Server-Sent Events.

    python -m examples sse_tokens           brings a database
    python -m examples.sse_tokens           has that of DATABASE_URL

Open http://localhost:8000/ and ask. Reload the page in the midst of the answer, or stop the server
and start it again: the page goes on behind the last token that it has, and so does the task.
"""

from __future__ import annotations

import json
import os
import signal

from collections.abc import AsyncGenerator

import hypercorn.trio
import trio

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, StreamingResponse
from starlette.routing import Route

import nursery_queue as nq


PAGE = """<!doctype html><meta charset="utf-8"><title>Tokens</title>
<form><input name="question" size="60" autofocus><button>Ask</button></form>
<p id="answer"></p><p><span id="count">0</span> tokens <span id="state"></span></p>
<script>
const show = (id, text) => document.getElementById(id).textContent = text;
function listen(task) {  // what we have got survives a reload, in sessionStorage
  let {last, count, answer} = JSON.parse(sessionStorage.getItem(task) ?? '{"count": 0}');
  const draw = () => { show("answer", answer ?? ""); show("count", count); };
  const source = new EventSource(`/tokens/${task}?after=${last ?? ""}`);
  source.onmessage = (event) => {
    last = event.lastEventId; count += 1; answer = (answer ?? "") + JSON.parse(event.data);
    sessionStorage.setItem(task, JSON.stringify({last, count, answer}));
    draw();
  };
  source.addEventListener("end", () => { source.close(); show("state", "and no more"); });
  draw();
}
document.querySelector("form").onsubmit = async (event) => {
  event.preventDefault();
  const question = event.target.question.value;
  const answer = await fetch("/ask", {method: "POST", body: JSON.stringify({question})});
  location.hash = (await answer.json()).task;
  location.reload();
};
if (location.hash) listen(location.hash.slice(1));
</script>
"""
tasks = nq.App()


def model(question: str) -> list[str]:
    """Know everything; put yours here."""
    return [f"{word.upper()} " for word in question.split()]


@tasks.task
async def answer(ctx: nq.TaskContext, question: str) -> None:
    """Go on behind the tokens of an attempt that was broken off, if there are any."""
    tokens = ctx.stream("tokens")
    before = await ctx.client.stream_info(ctx.task_id, "tokens")
    for token in model(question)[before.length if before else 0 :]:
        await trio.sleep(0.05)
        await tokens.write(token)


async def ask(request: Request) -> JSONResponse:
    """Start the task that answers."""
    task = await request.app.state.client.enqueue(answer, (await request.json())["question"])
    return JSONResponse({"task": task.id}, status_code=202)


async def tokens(request: Request) -> StreamingResponse:
    """Send what comes after the last event that the browser has got."""
    client: nq.Client = request.app.state.client
    task = request.path_params["task"]
    if await client.status(task) is None:
        raise HTTPException(404, f"there is no task {task}")
    # Its own header has the last word: it is newer than the address, if there are both.
    last = request.headers.get("last-event-id") or request.query_params.get("after", "")
    reader = client.read_stream(task, "tokens", int(last) + 1 if last.isdecimal() else 0)

    async def events() -> AsyncGenerator[str]:
        yield "retry: 200\n\n"  # milliseconds until it asks again, should we break off
        async for token in reader:
            yield f"id: {reader.position - 1}\ndata: {json.dumps(token)}\n\n"
        yield "event: end\ndata:\n\n"

    return StreamingResponse(
        events(), media_type="text/event-stream", headers={"cache-control": "no-store"}
    )


async def page(_: Request) -> HTMLResponse:
    """Show the page."""
    return HTMLResponse(PAGE)


web = Starlette(
    routes=[
        Route("/", page),
        Route("/ask", ask, methods=["POST"]),
        Route("/tokens/{task:int}", tokens),
    ]
)


async def told_to_stop() -> None:
    """Wait for SIGTERM or Ctrl-C."""
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        await anext(signals)


async def main() -> None:
    """Serve and work until told to stop; an answer in the making is given back, for later."""
    config = hypercorn.Config.from_mapping(bind=f"127.0.0.1:{os.environ.get('PORT', '8000')}")
    async with nq.connect(os.environ["DATABASE_URL"]) as client, trio.open_nursery() as nursery:
        web.state.client = client
        worker = nq.Worker(tasks, client, grace=0.5)
        await nursery.start(worker.run)
        await hypercorn.trio.serve(web, config, shutdown_trigger=told_to_stop)  # type: ignore[arg-type]  # narrower than ASGI
        worker.stop()


if __name__ == "__main__":
    trio.run(main)
