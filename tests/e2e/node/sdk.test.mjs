// The official Node client against a gateway whose model echoes its prompt: GATEWAY_URL says where, MODEL which.

import assert from "node:assert/strict";
import { test } from "node:test";

import OpenAI from "openai";
import { zodResponseFormat } from "openai/helpers/zod";
import { z } from "zod";

const model = process.env.MODEL;
const client = new OpenAI({ baseURL: `${process.env.GATEWAY_URL}/v1`, apiKey: "unused", maxRetries: 0 });

// The model is told to write exactly this.
const saying = (text) => ({ model, messages: [{ role: "user", content: text }], nvext: { use_raw_prompt: true } });

const weather = {
  type: "function",
  function: { name: "weather", parameters: { type: "object", properties: { city: { type: "string" } } } },
};
const call = '<tool_call>\n{"name": "weather", "arguments": {"city": "Köln"}}\n</tool_call>';

test("chat", async () => {
  const answer = await client.chat.completions.create(saying("Grüße, 世界 👋"));
  assert.equal(answer.choices[0].message.content, "Grüße, 世界 👋");
  assert.equal(answer.choices[0].finish_reason, "stop");
  assert.equal(answer.usage.total_tokens, answer.usage.prompt_tokens + answer.usage.completion_tokens);
});

test("stream with usage", async () => {
  const request = { ...saying("One two three."), stream: true, stream_options: { include_usage: true } };
  let text = "";
  let usage = null;
  for await (const chunk of await client.chat.completions.create(request)) {
    text += chunk.choices[0]?.delta?.content ?? "";
    usage = chunk.usage ?? usage;
  }
  assert.equal(text, "One two three.");
  assert.ok(usage.completion_tokens > 0);
});

test("a tool is called, and its result is read", async () => {
  const request = { ...saying(`<think>hm</think>${call}`), tools: [weather] };
  const { message, finish_reason } = (await client.chat.completions.create(request)).choices[0];
  assert.equal(finish_reason, "tool_calls");
  assert.equal(message.reasoning_content, "hm");
  assert.equal(message.tool_calls[0].function.name, "weather");
  assert.deepEqual(JSON.parse(message.tool_calls[0].function.arguments), { city: "Köln" });
  const result = { role: "tool", tool_call_id: message.tool_calls[0].id, content: "It rains in Köln." };
  const messages = [{ role: "user", content: "How is the weather?" }, message, result];
  const rest = { tools: [weather], tool_choice: "none", ignore_eos: true };
  const next = await client.chat.completions.create({ model, messages, ...rest });
  assert.match(next.choices[0].message.content, /It rains in Köln\./);
});

test("a streamed tool call is put together by the client", async () => {
  const stream = client.chat.completions.stream({ ...saying(`Well. ${call}`), tools: [weather] });
  const { message } = (await stream.finalChatCompletion()).choices[0];
  assert.match(message.content, /^Well\./);
  assert.deepEqual(JSON.parse(message.tool_calls[0].function.arguments), { city: "Köln" });
});

test("structured output is parsed", async () => {
  const Point = z.object({ x: z.number(), y: z.number() });
  const request = { ...saying('{"x": 1, "y": 2}'), response_format: zodResponseFormat(Point, "point") };
  const answer = await client.chat.completions.parse(request);
  assert.deepEqual(answer.choices[0].message.parsed, { x: 1, y: 2 });
});

test("text completion", async () => {
  const answer = await client.completions.create({ model, prompt: "One two three.", max_tokens: 64 });
  assert.equal(answer.choices[0].text, "One two three.");
});

test("responses, whole and streamed", async () => {
  const request = { model, input: `<think>hm</think>Hello. ${call}`, nvext: { use_raw_prompt: true } };
  const tools = [{ type: "function", ...weather.function, strict: false }];
  const whole = await client.responses.create({ ...request, tools });
  assert.deepEqual(whole.output.map((item) => item.type), ["reasoning", "message", "function_call"]);
  assert.match(whole.output_text, /^Hello\./);
  const types = [];
  let last = null;
  for await (const event of await client.responses.create({ ...request, tools, stream: true })) {
    types.push(event.type);
    last = event;
  }
  assert.equal(types[0], "response.created");
  assert.equal(last.type, "response.completed");
  assert.deepEqual(
    last.response.output.map((item) => item.type),
    ["reasoning", "message", "function_call"],
  );
});

const errors = [
  ["a field out of range", { temperature: 9 }, OpenAI.BadRequestError, "temperature", "out_of_range"],
  ["an unknown model", { model: "nobody" }, OpenAI.NotFoundError, "model", "model_not_found"],
];
for (const [what, fields, kind, param, code] of errors) {
  test(`${what} is a ${kind.name}`, async () => {
    await assert.rejects(client.chat.completions.create({ ...saying("hi"), ...fields }), (error) => {
      assert.ok(error instanceof kind, `${error}`);
      assert.equal(error.param, param);
      assert.equal(error.code, code);
      assert.ok(error.requestID);
      return true;
    });
  });
}
