// The dashboard's script: refreshes what moves, copies, and shows a streamed answer.  Pages work without it.
"use strict";

// An element with data-refresh is filled anew from there while the page is looked at.
function refresh(element) {
  const every = Number(element.dataset.every);
  let shown = null;
  async function once() {
    if (document.hidden) return;
    try {
      const response = await fetch(element.dataset.refresh, { credentials: "same-origin" });
      if (response.redirected || response.status === 401 || response.status === 403) return location.reload();
      if (!response.ok) return;
      const text = await response.text();
      if (text !== shown) element.innerHTML = shown = text;
      element.classList.remove("stale");
      if (element.querySelector("[data-over]")) location.reload();
    } catch {
      element.classList.add("stale"); // the server is away: what is shown is old
    }
  }
  (async function () {
    for (;;) {
      await new Promise((resume) => setTimeout(resume, every));
      await once();
    }
  })();
}

function copyable(button) {
  button.hidden = false;
  button.addEventListener("click", async () => {
    const source = document.getElementById(button.dataset.copy);
    try {
      await navigator.clipboard.writeText(source.textContent);
    } catch { // no clipboard without TLS: select the text instead
      getSelection().selectAllChildren(source);
      button.textContent = "Selected";
      return;
    }
    button.textContent = "Copied";
    setTimeout(() => (button.textContent = "Copy"), 2000);
  });
}

// Server-sent events of a chat completion, as what they add to the answer.
async function* deltas(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    const lines = (rest + value).split("\n");
    rest = lines.pop();
    for (const line of lines) {
      if (!line.startsWith("data: ") || line === "data: [DONE]") continue;
      const chunk = JSON.parse(line.slice(6));
      if (chunk.error) throw new Error(chunk.error.message);
      yield chunk;
    }
  }
}

function trying(form) {
  const find = (name) => document.getElementById("try-" + name);
  const answer = find("answer"), state = find("state"), stop = find("stop"), send = find("send");
  let control = null;

  function say(kind, text) {
    let last = answer.lastElementChild;
    if (!last || last.className !== kind) {
      last = document.createElement("div");
      last.className = kind;
      answer.append(last);
    }
    last.append(text);
  }

  async function ask() {
    const began = performance.now();
    const seconds = () => ((performance.now() - began) / 1000).toFixed(1) + " s";
    const headers = { "content-type": "application/json" };
    if (find("key")) headers.authorization = "Bearer " + find("key").value;
    const body = {
      model: find("model").value, stream: true, stream_options: { include_usage: true },
      messages: [{ role: "user", content: find("text").value }],
    };
    const response = await fetch(document.getElementById("try-form").dataset.url, {
      method: "POST", headers, body: JSON.stringify(body), signal: control.signal,
    });
    if (!response.ok) throw new Error((await response.json()).error.message);
    let first = null, usage = null;
    for await (const chunk of deltas(response)) {
      first ??= seconds();
      usage = chunk.usage ?? usage;
      for (const { delta } of chunk.choices) {
        if (delta.reasoning_content) say("thought", delta.reasoning_content);
        if (delta.content) say("words", delta.content);
      }
      state.textContent = "Streaming…";
    }
    const tokens = usage ? `, ${usage.prompt_tokens} tokens in, ${usage.completion_tokens} out` : "";
    state.textContent = `Done in ${seconds()}, first event after ${first}${tokens}.`;
  }

  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    control = new AbortController();
    answer.hidden = false;
    answer.replaceChildren();
    state.textContent = "Asking…";
    send.disabled = true;
    stop.hidden = false;
    try {
      await ask();
    } catch (error) {
      if (error.name === "AbortError") state.textContent = "Stopped.";
      else {
        say("error", error.message);
        state.textContent = "Failed.";
      }
    } finally {
      send.disabled = false;
      stop.hidden = true;
    }
  });
  stop.addEventListener("click", () => control.abort());
}

document.querySelectorAll("[data-refresh]").forEach(refresh);
document.querySelectorAll("[data-copy]").forEach(copyable);
if (document.getElementById("try-form")) trying(document.getElementById("try-form"));
